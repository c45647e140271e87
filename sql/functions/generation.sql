-- generation: which there are, and where their vectors lie.
--
-- Names of columns are those of now, whatever a transaction's snapshot sees of the catalog, and at a cut-over two columns exchange theirs. So whoever is to
-- read or write a generation's column takes a lock on the table first (`hold`), which a cut-over waits for. What looks at the catalog after that in a snapshot
-- of its own finds the name in the generation itself. A search looks in its statement's snapshot: where the generation has been changed since (`xmax`), it
-- finds names by the columns' numbers.

CREATE OR REPLACE FUNCTION nv_embed.as_declared(e nv_embed.embedding, g nv_embed.generation) RETURNS nv_embed.embedding
LANGUAGE sql IMMUTABLE
RETURN ROW(e.id, e.relation, e.target, g.source, e.mode, e.truncate, g.chunk_tokens, g.chunk_overlap)::nv_embed.embedding;

COMMENT ON FUNCTION nv_embed.as_declared(nv_embed.embedding, nv_embed.generation) IS 'An embedding with the texts and pieces of one of its generations.';

-- declaration: the two rows that say what a generation is of.
CREATE OR REPLACE FUNCTION nv_embed.declaration(generation bigint, OUT e nv_embed.embedding, OUT g nv_embed.generation)
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT * INTO g FROM nv_embed.generation AS s WHERE s.id = declaration.generation;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'generation % has ended', generation
            USING ERRCODE = '42704', DETAIL = 'Its re-embedding did, or its declaration.', HINT = 'its rows need no vectors of it any more';
    END IF;
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = g.embedding;
    e := nv_embed.as_declared(e, g);
END
$$;

COMMENT ON FUNCTION nv_embed.declaration(bigint) IS 'A generation, and its embedding with the texts and pieces of this generation.';

CREATE OR REPLACE FUNCTION nv_embed.kept_generations(embedding bigint) RETURNS SETOF nv_embed.generation
LANGUAGE plpgsql STABLE STRICT ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT * FROM nv_embed.generation AS g
    WHERE g.embedding = kept_generations.embedding AND g.state <> 'planned'
    ORDER BY g.state <> 'live', g.id;
END
$$;

COMMENT ON FUNCTION nv_embed.kept_generations(bigint) IS 'The generations of an embedding that are kept in step with its rows: the live one first, then the next or the previous.';

CREATE OR REPLACE FUNCTION nv_embed.hold(relation regclass) RETURNS regclass
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE 'SELECT FROM ONLY ' || relation || ' LIMIT 0';
    RETURN relation;
END
$$;

COMMENT ON FUNCTION nv_embed.hold(regclass) IS 'Keeps the names of a table''s columns from being changed until the transaction ends, as any reading of it does.';

CREATE OR REPLACE FUNCTION nv_embed.hold_generation(generation bigint) RETURNS regclass
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT nv_embed.hold(e.relation) FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding WHERE g.id = generation);
END
$$;

COMMENT ON FUNCTION nv_embed.hold_generation(bigint) IS 'Holds the table of a generation, and returns it.';

-- pg_identify_object_as_address() looks names up as the parser does.
CREATE OR REPLACE FUNCTION nv_embed.column_name(g nv_embed.generation, relation regclass) RETURNS name
LANGUAGE sql STABLE
RETURN CASE
    WHEN g.chunks IS NOT NULL THEN g.target
    WHEN g.attrelid = relation::oid THEN (pg_identify_object_as_address('pg_class'::regclass, relation, g.attnum)).object_names[3]::name
END;

COMMENT ON FUNCTION nv_embed.column_name(nv_embed.generation, regclass)
    IS 'The name that a generation''s column has now; NULL where its number is not known, because the database was restored from a dump.';

CREATE OR REPLACE FUNCTION nv_embed.present_columns(relation regclass) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most CONSTANT int := 1600;
BEGIN
    RETURN (
        SELECT string_agg(quote_ident(c.name), ', ' ORDER BY n)
        FROM generate_series(1, most) AS n
        CROSS JOIN LATERAL (SELECT (pg_identify_object_as_address('pg_class'::regclass, relation, n)).object_names[3] AS name) AS c
        WHERE c.name NOT LIKE '........pg.dropped.%'
    );
END
$$;

COMMENT ON FUNCTION nv_embed.present_columns(regclass) IS 'The columns that a table has now, whatever the transaction sees of the catalog.';

CREATE OR REPLACE FUNCTION nv_embed.placed(g nv_embed.generation, target name) RETURNS nv_embed.generation
LANGUAGE sql IMMUTABLE
RETURN ROW(
    g.id, g.embedding, g.model, g.revision, g.dim, g.storage, target, g.state, g.source, g.chunk_tokens, g.chunk_overlap, g.chunks, g.attrelid, g.attnum, g.version
)::nv_embed.generation;

COMMENT ON FUNCTION nv_embed.placed(nv_embed.generation, name) IS 'A generation with the name of its column.';

CREATE OR REPLACE FUNCTION nv_embed.live_generation(relation regclass, target name) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g nv_embed.generation;
BEGIN
    SELECT s.* INTO g
    FROM nv_embed.embedding AS e JOIN nv_embed.generation AS s ON s.embedding = e.id AND s.state = 'live'
    WHERE e.relation = live_generation.relation AND e.target = live_generation.target;
    IF NOT FOUND THEN
        PERFORM nv_embed.find_embedding(relation, target);
    END IF;
    RETURN nv_embed.placed(g, coalesce(nv_embed.column_name(g, relation), g.target));
END
$$;

COMMENT ON FUNCTION nv_embed.live_generation(regclass, name) IS 'The generation that answers searches, or find_embedding''s error.';

CREATE OR REPLACE FUNCTION nv_embed.refuse_ended(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'could not serialize access due to a re-embedding of %', nv_embed.qualified(relation)
        USING ERRCODE = '40001', DETAIL = 'The vectors that this transaction''s snapshot has are not those that the column has now.', HINT = 'run the transaction again';
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_ended(regclass) IS 'Raises the error for a snapshot whose live generation is not where this transaction would look for it.';

CREATE OR REPLACE FUNCTION nv_embed.named_generation(relation regclass, target name) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
BEGIN
    IF g.chunks IS NULL AND g.target <> target THEN
        PERFORM nv_embed.refuse_ended(relation);
    END IF;
    RETURN g;
END
$$;

COMMENT ON FUNCTION nv_embed.named_generation(regclass, name)
    IS 'The generation that answers searches, for whoever reads or writes its column by name: an error where that name is another generation''s by now.';

-- Each statement here has a snapshot of its own, unless the transaction has one: what is read after `hold` is how it stays.
CREATE OR REPLACE FUNCTION nv_embed.hold_embedding(relation regclass, target name, is_by_name boolean DEFAULT true)
RETURNS TABLE (mode text, session_mode text, truncate text, model text, revision text, dim int, storage text, literals text[], columns name[])
LANGUAGE plpgsql VOLATILE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g nv_embed.generation;
BEGIN
    PERFORM nv_embed.hold(relation);
    IF NOT EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.relation = hold_embedding.relation AND e.target = hold_embedding.target) THEN
        RETURN;
    END IF;
    g := CASE WHEN is_by_name THEN nv_embed.named_generation(relation, target) ELSE nv_embed.live_generation(relation, target) END;
    RETURN QUERY
    SELECT e.mode, nv_embed.effective_mode(NULL), e.truncate, g.model, g.revision, g.dim, g.storage, t.literals, t.columns
    FROM nv_embed.embedding AS e
    CROSS JOIN LATERAL (
        SELECT array_agg(coalesce(p.literal, '') ORDER BY p.place), array_agg(p.column_name ORDER BY p.place) FROM nv_embed.parse_template(e.source) AS p
    ) AS t (literals, columns)
    WHERE e.id = g.embedding;
END
$$;

COMMENT ON FUNCTION nv_embed.hold_embedding(regclass, name, boolean)
    IS 'For programs that bring vectors along: what makes them, unchanged until the transaction ends. Nothing where the column is not auto-embedded.';

CREATE OR REPLACE FUNCTION nv_embed.number_column(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE nv_embed.generation AS s
    SET attrelid = a.attrelid, attnum = a.attnum
    FROM pg_attribute AS a
    WHERE s.id = g.id AND g.chunks IS NULL AND a.attrelid = e.relation AND a.attname = g.target AND NOT a.attisdropped;
END
$$;

COMMENT ON FUNCTION nv_embed.number_column(nv_embed.embedding, nv_embed.generation) IS 'Writes down the number of a generation''s column.';

CREATE OR REPLACE FUNCTION nv_embed.column_of(target name, generation bigint) RETURNS name
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    suffix CONSTANT text := '_g' || generation;
    stem text := target;
BEGIN
    WHILE octet_length(stem || suffix) > 63 LOOP
        stem := left(stem, -1);
    END LOOP;
    RETURN stem || suffix;
END
$$;

COMMENT ON FUNCTION nv_embed.column_of(name, bigint) IS 'The name of a generation''s column while another one is live.';
