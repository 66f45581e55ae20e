# The environment with the pinned versions, and this tree in /sumnas. Over it goes your clone, so that results stay:
#   docker build -t sumnas .
#   docker run --rm -it --user "$(id -u):$(id -g)" -v "$PWD:/sumnas" sumnas snakemake --cores 2
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /sumnas
COPY . .
# Editable: what is mounted over /sumnas is what runs. Git refuses a folder of another user's unless told.
RUN pip install --no-cache-dir -c constraints.txt -e . \
    && git config --system --add safe.directory /sumnas

# Whoever runs it has neither name nor home in the image: caches and checkpoints go where anyone may write.
ENV HOME=/tmp USER=sumnas
CMD ["bash"]
