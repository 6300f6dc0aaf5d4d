from .llama import LanguageModel, LlamaConfig
