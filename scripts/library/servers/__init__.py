"""SGLang servers and engines: started, asked, and ended."""
