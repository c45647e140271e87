-- embedding and generation: what is declared, and which model made the vectors.
--
-- Declarations are as public as pg_class: anybody may read them, and a row may be written by whoever owns the table that it names. Row-level security
-- says so once, and the functions that write here need no rights of their own.

CREATE TABLE nv_embed.embedding (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation regclass NOT NULL,
    target   name NOT NULL,
    source   text NOT NULL,
    mode     text NOT NULL CHECK (mode IN ('sync', 'async', 'off')),
    truncate text NOT NULL CHECK (truncate IN ('NONE', 'START', 'END')),
    chunk_tokens  int CHECK (chunk_tokens > 0),
    chunk_overlap int NOT NULL DEFAULT 0 CHECK (chunk_overlap >= 0),
    UNIQUE (relation, target)
);

COMMENT ON TABLE nv_embed.embedding IS 'Declarations: this table, these source columns, this target column. What a re-embedding can change is that of the live generation.';
COMMENT ON COLUMN nv_embed.embedding.source IS 'Template over the table''s columns, {title}: {body}; a doubled brace is a brace.';
COMMENT ON COLUMN nv_embed.embedding.chunk_tokens IS 'Tokens of a piece at most; NULL where a row is embedded whole.';
COMMENT ON COLUMN nv_embed.embedding.chunk_overlap IS 'Tokens that a piece repeats of the one before.';

CREATE TABLE nv_embed.generation (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    embedding bigint NOT NULL REFERENCES nv_embed.embedding ON DELETE CASCADE,
    model     text NOT NULL,
    revision  text NOT NULL,
    dim       int NOT NULL CHECK (dim > 0),
    storage   text NOT NULL CHECK (storage IN ('vector', 'halfvec')),
    target    name NOT NULL,
    state     text NOT NULL DEFAULT 'live' CHECK (state IN ('planned', 'next', 'live', 'previous')),
    source    text NOT NULL,
    chunk_tokens  int CHECK (chunk_tokens > 0),
    chunk_overlap int NOT NULL DEFAULT 0 CHECK (chunk_overlap >= 0),
    chunks    regclass,
    attrelid  oid,
    attnum    smallint,
    version   int NOT NULL DEFAULT 1
);

COMMENT ON TABLE nv_embed.generation IS 'One embedding''s vectors by one model at one dimension and storage type; exactly one is live.';
COMMENT ON COLUMN nv_embed.generation.revision IS 'A sidecar that serves another revision is refused, so that two models never share a column.';
COMMENT ON COLUMN nv_embed.generation.target IS 'The column that holds this generation''s vectors: of the user''s table, or of the chunk table.';
COMMENT ON COLUMN nv_embed.generation.source IS 'The template that its texts are made by, as chunk_tokens and chunk_overlap are how they are cut.';
COMMENT ON COLUMN nv_embed.generation.state IS 'live answers searches; next is being filled, previous was live before; planned has no column yet.';
COMMENT ON COLUMN nv_embed.generation.chunks IS 'The chunk table; NULL where a row is embedded whole.';
COMMENT ON COLUMN nv_embed.generation.attrelid IS 'The table whose column attnum is target. Not a regclass: in a restored dump it is no table''s, and the name holds.';
COMMENT ON COLUMN nv_embed.generation.attnum IS 'The column''s number: its name changes hands at a cut-over, which a reader with an older snapshot does not see.';
COMMENT ON COLUMN nv_embed.generation.version IS 'Of the live one: grows whenever its embedding''s generations change. The triggers carry it too: a writer whose snapshot has another is refused.';

CREATE UNIQUE INDEX generation_live ON nv_embed.generation (embedding) WHERE state = 'live';
CREATE INDEX generation_embedding ON nv_embed.generation (embedding);

-- Whether the current role owns a table, directly or through a role that it is a member of.
CREATE FUNCTION nv_embed.owns(relation regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN (SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class AS c WHERE c.oid = relation);

COMMENT ON FUNCTION nv_embed.owns(regclass) IS 'Whether the current role owns this table.';

ALTER TABLE nv_embed.embedding ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.embedding FOR SELECT USING (true);
-- NULL is a table that was dropped: whoever meets its declaration may clear it away.
CREATE POLICY written_by_owner ON nv_embed.embedding USING (nv_embed.owns(relation) IS NOT FALSE) WITH CHECK (nv_embed.owns(relation));

ALTER TABLE nv_embed.generation ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.generation FOR SELECT USING (true);
CREATE POLICY written_by_owner ON nv_embed.generation
    USING (EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.id = generation.embedding AND nv_embed.owns(e.relation)));

-- By columns, so that nobody chooses a declaration's number.
GRANT UPDATE (mode, truncate) ON nv_embed.embedding TO PUBLIC;
GRANT UPDATE (state, target, attrelid, attnum, version) ON nv_embed.generation TO PUBLIC;
GRANT SELECT, DELETE ON nv_embed.embedding, nv_embed.generation TO PUBLIC;
GRANT INSERT (relation, target, source, mode, truncate, chunk_tokens, chunk_overlap) ON nv_embed.embedding TO PUBLIC;
GRANT INSERT (embedding, model, revision, dim, storage, target, state, source, chunk_tokens, chunk_overlap, chunks) ON nv_embed.generation TO PUBLIC;
