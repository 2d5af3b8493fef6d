"""8-bit graphs: activation scales, GPTQ rounding, calibration."""
