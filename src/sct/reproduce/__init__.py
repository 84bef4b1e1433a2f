"""The paper's figures and tables, made from scratch: `sct reproduce`."""
