"""What SGLang imports where its own kernels for a CPU are missing."""


def rotary_embedding(*args, **kwargs):
    raise NotImplementedError("this environment has no vLLM: rotary_embedding is a stand-in that must not be called")
