-- Full text beside it, on the same texts. The parts of a name are words of their own: by default `random.choice` is read as a host's name.

ALTER TABLE public.python_docs
    ADD COLUMN words tsvector GENERATED ALWAYS AS (to_tsvector('english', translate(name, '._', '  ') || ' ' || doc)) STORED;

CREATE INDEX python_docs_words ON public.python_docs USING gin (words);

ANALYZE public.python_docs;
