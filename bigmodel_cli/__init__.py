"""bigmodel: prepare → train → evaluate → deploy, four commands that can prove what they did."""

__version__ = "0.1.0"
