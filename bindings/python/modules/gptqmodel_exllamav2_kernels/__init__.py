"""The name under which GPTQModel imports exllamav2_kernels: the same module object."""

import sys

import exllamav2_kernels

sys.modules[__name__] = exllamav2_kernels
