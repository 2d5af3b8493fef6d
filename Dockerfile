# A server image with its model: prepared at build time, offline and read-only at run time.
#
#   docker build -t penult .                                                         all-MiniLM-L6-v2 from the Hub
#   docker build -t penult --build-arg MODEL=org/name --build-arg PRECISION=int8 .   another model
#   docker build -t penult --build-context model=/path/to/folder .                   a folder, without the Hub
#
# docs/deploy.md describes every build argument, the image's size and how to run it.

# Pin the base image by digest for reproducible builds: --build-arg BASE=python:3.12-slim@sha256:...
ARG BASE=python:3.12-slim

# Empty unless `--build-context model=FOLDER` replaces it.
FROM scratch AS model

FROM ${BASE} AS install
ARG EXTRAS=server
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python3 -m venv /opt/penult \
 && /opt/penult/bin/pip install ".[${EXTRAS}]" \
 && /opt/penult/bin/pip uninstall --yes pip

FROM install AS prepare
ARG MODEL=
ARG REVISION=
ARG MODEL_FILE=
ARG PRECISION=fp32
ARG SERVED_NAME=
ENV XDG_CACHE_HOME=/models
COPY deploy/prepare.py /src/deploy/prepare.py
COPY --from=model . /models/model
RUN /opt/penult/bin/python /src/deploy/prepare.py /models

FROM ${BASE}
ARG VERSION=
ARG GIT_COMMIT=
LABEL org.opencontainers.image.title="penult" \
      org.opencontainers.image.description="Text embeddings over HTTP on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}"
# XDG_CACHE_HOME: penult reads the prepared graphs from /models/penult and, where it needs another one, writes it to /tmp.
ENV PATH=/opt/penult/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/models \
    HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=install /opt/penult /opt/penult
COPY --from=prepare /models /models
WORKDIR /tmp
USER 10001:10001
EXPOSE 5543
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5543/health', timeout=4)"]
# Arguments of `docker run IMAGE ...` are further options of `penult serve`.
ENTRYPOINT ["penult", "serve", "--config", "/models/server.yaml"]
