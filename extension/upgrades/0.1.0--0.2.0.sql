-- 0.1.0 to 0.2.0: modes async and off, with a queue and workers; the numbers of nv_embed.status; chunk tables.

DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['nv_embed_worker', 'nv_embed_user'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;

-- Declarations of tables that were dropped, and the triggers of the others.
DELETE FROM nv_embed.embedding AS e WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = e.relation);
DO $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.tgname, n.nspname, c.relname
        FROM pg_catalog.pg_trigger AS g
        JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE g.tgfoid = 'nv_embed.embed_written_rows()'::regprocedure AND g.tgparentid = 0
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %I.%I', t.tgname, t.nspname, t.relname);
    END LOOP;
END
$$;

-- What is gone, or takes or returns other things now.
DROP FUNCTION nv_embed.embed_written_rows();
DROP FUNCTION nv_embed.configure(text, real);
DROP FUNCTION nv_embed.has_few_to_fill(regclass, name);
DROP FUNCTION nv_embed.fill(bigint, refcursor);
DROP FUNCTION nv_embed.candidates_sql(nv_embed.embedding, name, text);
DROP FUNCTION nv_embed.check_may_fill(regclass, name);
DROP FUNCTION nv_embed.write_sql(bigint);
DROP FUNCTION nv_embed.pages_sql(bigint, text);
DROP FUNCTION nv_embed.declare_embedding(regclass, text, name, int, text, text, text, text);
DROP FUNCTION nv_embed.key_columns(regclass);
DROP FUNCTION nv_embed.search_sql(regclass, name, int, int, text);
DROP FUNCTION @extschema@.nv_search(anyelement, vector, int, name, int, boolean, real, text);
DROP FUNCTION @extschema@.nv_search(anyelement, text, int, name, int, boolean, real, text);

ALTER TABLE nv_embed.settings
    ADD COLUMN token text,
    ADD COLUMN ca text,
    ADD COLUMN certificate text,
    ADD COLUMN key text,
    ADD COLUMN token_without_tls boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN nv_embed.settings.token IS 'What the sidecar lets in; NULL where it asks for none.';
COMMENT ON COLUMN nv_embed.settings.ca IS 'PEM certificates of who has signed the sidecar''s, or system for the usual authorities; NULL: no TLS.';
COMMENT ON COLUMN nv_embed.settings.certificate IS 'PEM certificate that is shown to the sidecar, with its chain.';
COMMENT ON COLUMN nv_embed.settings.key IS 'Its PEM key.';
COMMENT ON COLUMN nv_embed.settings.token_without_tls IS 'Whether the token may go over the network unencrypted.';
ALTER TABLE nv_embed.embedding
    DROP CONSTRAINT embedding_mode_check,
    ADD CONSTRAINT embedding_mode_check CHECK (mode IN ('sync', 'async', 'off')),
    ADD COLUMN chunk_tokens int CHECK (chunk_tokens > 0),
    ADD COLUMN chunk_overlap int NOT NULL DEFAULT 0 CHECK (chunk_overlap >= 0);
ALTER TABLE nv_embed.generation
    DROP CONSTRAINT generation_state_check,
    ADD CONSTRAINT generation_state_check CHECK (state IN ('planned', 'next', 'live', 'previous')),
    ADD COLUMN source text,
    ADD COLUMN chunk_tokens int CHECK (chunk_tokens > 0),
    ADD COLUMN chunk_overlap int NOT NULL DEFAULT 0 CHECK (chunk_overlap >= 0),
    ADD COLUMN chunks regclass,
    ADD COLUMN attrelid oid,
    ADD COLUMN attnum smallint,
    ADD COLUMN version int NOT NULL DEFAULT 1;
UPDATE nv_embed.generation AS g
SET attrelid = a.attrelid, attnum = a.attnum
FROM nv_embed.embedding AS e JOIN pg_catalog.pg_attribute AS a ON a.attrelid = e.relation
WHERE e.id = g.embedding AND a.attname = g.target;
UPDATE nv_embed.generation AS g SET source = e.source FROM nv_embed.embedding AS e WHERE e.id = g.embedding;
ALTER TABLE nv_embed.generation ALTER COLUMN source SET NOT NULL;
COMMENT ON TABLE nv_embed.embedding IS 'Declarations: this table, these source columns, this target column. What a re-embedding can change is that of the live generation.';
COMMENT ON COLUMN nv_embed.generation.source IS 'The template that its texts are made by, as chunk_tokens and chunk_overlap are how they are cut.';
COMMENT ON COLUMN nv_embed.embedding.chunk_tokens IS 'Tokens of a piece at most; NULL where a row is embedded whole.';
COMMENT ON COLUMN nv_embed.embedding.chunk_overlap IS 'Tokens that a piece repeats of the one before.';
COMMENT ON COLUMN nv_embed.generation.target IS 'The column that holds this generation''s vectors: of the user''s table, or of the chunk table.';
COMMENT ON COLUMN nv_embed.generation.chunks IS 'The chunk table; NULL where a row is embedded whole.';
COMMENT ON COLUMN nv_embed.generation.state IS 'live answers searches; next is being filled, previous was live before; planned has no column yet.';
COMMENT ON COLUMN nv_embed.generation.attrelid IS 'The table whose column attnum is target. Not a regclass: in a restored dump it is no table''s, and the name holds.';
COMMENT ON COLUMN nv_embed.generation.attnum IS 'The column''s number: its name changes hands at a cut-over, which a reader with an older snapshot does not see.';
COMMENT ON COLUMN nv_embed.generation.version IS 'Of the live one: grows whenever its embedding''s generations change. The triggers carry it too: a writer whose snapshot has another is refused.';
GRANT UPDATE (mode, truncate) ON nv_embed.embedding TO PUBLIC;
GRANT UPDATE (state, target, attrelid, attnum, version) ON nv_embed.generation TO PUBLIC;
GRANT INSERT (chunk_tokens, chunk_overlap) ON nv_embed.embedding TO PUBLIC;
GRANT INSERT (state, source, chunk_tokens, chunk_overlap, chunks) ON nv_embed.generation TO PUBLIC;

-- @include schema/job.sql
-- @include schema/tally.sql
-- @include schema/worker.sql
-- @include schema/reembedding.sql

SELECT pg_catalog.pg_extension_config_dump('nv_embed.job', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.backfill', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.tally', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.job_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.reembedding', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.canary', '');
SELECT pg_catalog.pg_extension_config_dump('nv_embed.reembedding_id_seq', '');

-- @include functions

-- What is declared goes on with triggers that count and queue. Rows that are there are counted now where they are few, else by the workers or by
-- nv_embed.refresh(). Where a column is gone, so that nothing can be counted, its owner's error says so as before, and must not hold this up.
DO $$
DECLARE
    e nv_embed.embedding;
BEGIN
    FOR e IN SELECT * FROM nv_embed.embedding AS s ORDER BY s.id LOOP
        PERFORM nv_embed.set_triggers(e, 1);
        BEGIN
            PERFORM nv_embed.begin_backfill(e.relation, e.target);
        EXCEPTION WHEN undefined_column THEN
            INSERT INTO nv_embed.backfill (generation) SELECT g.id FROM nv_embed.generation AS g WHERE g.embedding = e.id;
        END;
    END LOOP;
END
$$;
