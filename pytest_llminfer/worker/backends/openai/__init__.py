"""Any server that speaks the OpenAI interface, asked over HTTP."""
