"""Int8 quantization: activation scales, GPTQ rounding, calibration."""
