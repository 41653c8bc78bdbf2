# `debian:bookworm-slim` as the bed makes it, where no registry can be reached: debootstrap's smallest variant.
FROM scratch
ADD root.tar /
CMD ["bash"]
