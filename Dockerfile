# docker build -t heed .                                        for the CPU
# docker build -t heed:cuda --build-arg DEVICE=gpu .            for CUDA; run it with --gpus all
# docker run --rm -p 127.0.0.1:8000:8000 --shm-size 256m heed
ARG DEVICE=cpu

FROM python:3.11-slim AS build
ARG DEVICE
RUN python -m venv /opt/heed
WORKDIR /src
# The dependencies need only these files, so that a change of code does not install them again.
COPY pyproject.toml LICENSE ./
COPY requirements requirements
RUN mkdir models service && touch models/__init__.py service/__init__.py \
    && if [ "${DEVICE}" = gpu ]; then versions=gpu; else versions=serve; fi \
    && /opt/heed/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint "requirements/${versions}.txt" ".[${DEVICE}]"
COPY models models
COPY service service
RUN /opt/heed/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall ".[${DEVICE}]"

FROM python:3.11-slim AS run
RUN useradd --create-home --uid 10001 heed
COPY --from=build /opt/heed /opt/heed
ENV PATH=/opt/heed/bin:$PATH PYTHONUNBUFFERED=1 HEED_HOST=0.0.0.0 HEED_LOG_FORMAT=json
USER heed
WORKDIR /home/heed
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=3s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["heed", "serve"]

FROM run AS cpu
ENV HEED_DEVICE=cpu

# CUDA and cuDNN come with the Python packages of the extra `gpu`. The host provides the driver.
FROM run AS gpu
ENV HEED_DEVICE=cuda

FROM ${DEVICE}
