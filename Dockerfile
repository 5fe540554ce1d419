# Not built in CI.   docker build -t rayasd . && mkdir -p runs && docker run --rm --user $(id -u):$(id -g) -v $PWD/data:/data -v $PWD/runs:/runs rayasd sweep --data /data --run-dir /runs/first
# With GPUs: docker run --gpus all --shm-size 8g …; torch brings its own CUDA libraries.
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY rayasd /src/rayasd
RUN pip install --no-cache-dir -c /src/constraints.txt /src && rm -r /src
ENV RAYASD_CACHE=/tmp/rayasd
ENTRYPOINT ["rayasd"]
