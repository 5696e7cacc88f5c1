# docker build -t fvlm .                 torch with CUDA; on a GPU: docker run --gpus all fvlm
# docker build -t fvlm --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .      without
FROM python:3.13-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /fvlm
COPY . .
ARG TORCH_INDEX=
ARG PIP_NO_CACHE_DIR=1
RUN make install PYTHON=python3.13 TORCH_INDEX=$TORCH_INDEX
CMD ["make", "repro"]
