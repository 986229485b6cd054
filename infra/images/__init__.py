"""Images of the containers backend (infra/containers.py), and the Docker Engine that runs them.

    python -m infra.images up       Docker Engine and every image; starts or builds what is missing
    python -m infra.images down     stop the Docker Engine that `up` started
    python -m infra.images project  the project's own image, `staleproof`

Official images are used where a registry can be reached. Where none can, images with the same manners are built from
packages of the Debian release that this machine runs: `debootstrap`, `docker import`, and the Dockerfiles here.
"""
