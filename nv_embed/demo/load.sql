COPY public.python_docs (name, kind, signature, doc) FROM STDIN
