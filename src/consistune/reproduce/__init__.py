"""The paper's figures and tables, made from scratch: `consistune reproduce`."""
