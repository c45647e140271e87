-- library: what the library install keeps for itself. The extension's version stands in pg_extension, and its models can be asked for at any time.

CREATE TABLE nv_embed.installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  text NOT NULL,
    schema   name NOT NULL,
    code     text NOT NULL
);

COMMENT ON TABLE nv_embed.installation IS 'Which version of the library install this is; written by nv-embed install --library.';
COMMENT ON COLUMN nv_embed.installation.schema IS 'Where nv_search() and nv_truncate() are.';
COMMENT ON COLUMN nv_embed.installation.code IS 'A digest of the functions'' definitions: where it is the same, none is made again.';

CREATE TABLE nv_embed.model (
    name          text PRIMARY KEY,
    revision      text NOT NULL,
    native_dim    int NOT NULL CHECK (native_dim > 0),
    trained_dims  int[] NOT NULL,
    declared_dims int[] NOT NULL DEFAULT '{}',
    is_default    boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE nv_embed.model IS 'The models that may be declared, because nothing in this database can ask a sidecar; written by nv_embed.record_models().';
COMMENT ON COLUMN nv_embed.model.trained_dims IS 'Widths that the model was trained for, its native one among them.';
COMMENT ON COLUMN nv_embed.model.declared_dims IS 'Further widths that the sidecar''s operator allows.';
COMMENT ON COLUMN nv_embed.model.is_default IS 'The model of a declaration that names none.';

-- Only a superuser may make functions that set what the server does not know yet, such as hnsw.iterative_scan, and a restored dump makes ours. It makes types
-- before, and to read this one's default it loads pgvector.
CREATE DOMAIN nv_embed.loads_pgvector AS vector DEFAULT '[0]';

COMMENT ON DOMAIN nv_embed.loads_pgvector IS 'Has pgvector loaded before functions are restored from a dump; for nothing else.';

COMMENT ON TABLE nv_embed.alembic_version IS 'The revision that the data of the library install is at; Alembic''s.';

-- Read by all and written by the owner alone, whatever default privileges say.
ALTER TABLE nv_embed.installation ENABLE ROW LEVEL SECURITY;
ALTER TABLE nv_embed.model ENABLE ROW LEVEL SECURITY;
ALTER TABLE nv_embed.alembic_version ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.installation FOR SELECT USING (true);
CREATE POLICY readable ON nv_embed.model FOR SELECT USING (true);
CREATE POLICY readable ON nv_embed.alembic_version FOR SELECT USING (true);
GRANT SELECT ON nv_embed.installation, nv_embed.model, nv_embed.alembic_version TO PUBLIC;
