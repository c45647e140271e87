-- The texts, and one declaration that keeps them searchable by meaning. What is longer than the model's limit is cut at its end.

CREATE TABLE public.python_docs (
    name text PRIMARY KEY,
    kind text NOT NULL,
    signature text NOT NULL,
    doc text NOT NULL
);

COMMENT ON TABLE public.python_docs IS 'made by nv-embed demo';
