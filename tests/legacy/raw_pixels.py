"""Every third pixel as a feature. The cache knows this file by its SHA-256: do not change a byte."""


def raw(x):
    return x[:, 0].flatten(1)[:, ::3]


raw.protocol = {"name": "fd-raw"}
