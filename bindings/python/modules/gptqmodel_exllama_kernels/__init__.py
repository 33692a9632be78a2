"""The name under which GPTQModel imports exllama_kernels: the same module object."""

import sys

import exllama_kernels

sys.modules[__name__] = exllama_kernels
