"""SGLang's offline engine. Its schedulers are separate processes, which are asked directly what only they know."""
