"""SGLang's offline engine: its schedulers are processes of their own, and answer for themselves what only they know."""
