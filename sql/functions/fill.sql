-- fill: give rows their vectors.
--
-- A cursor hands out the rows that await a vector, by pages of a thousand; each page is embedded in one call, compared with its rows and
-- written, by primary key. The statements are built as text, because tables and columns are the user's, and run with the rights and the search_path of whoever
-- wrote the rows, since their table may have triggers of its own. Hence the division here: what builds a statement pins its search_path; what runs one does not,
-- and names everything with its schema.
--
-- Old and new rows of an UPDATE are paired by their order in the transition tables, not by key: the key itself may have changed.
--
-- A vector is written only where the row still reads as it was embedded. A row that its own triggers rewrote, or that somebody else changed while
-- `refresh` waited for the sidecar, is left to the statement that changed it. Pieces are only ever added here: the queue's triggers, which run before,
-- have taken away those of the texts before.
--
-- Type names are written with their schema too: for types, a session's own pg_temp comes before everything else.

CREATE OR REPLACE FUNCTION nv_embed.qualified(relation regclass) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation);
END
$$;

COMMENT ON FUNCTION nv_embed.qualified(regclass) IS 'A table''s name with its schema, quoted as needed.';

CREATE OR REPLACE FUNCTION nv_embed.type_sql(storage text, dim int) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('%s(%s)', nv_embed.storage_type(storage), dim);
END
$$;

COMMENT ON FUNCTION nv_embed.type_sql(text, int) IS 'A column type of pgvector with its schema, for example public.halfvec(384).';

CREATE OR REPLACE FUNCTION nv_embed.check_target(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing name;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = coalesce(g.chunks, e.relation) AND a.attname = g.target AND NOT a.attisdropped) THEN
        RAISE EXCEPTION '% of % holds its vectors and is gone',
            CASE WHEN g.chunks IS NULL THEN 'column ' || quote_ident(g.target) ELSE 'the chunk table' END, nv_embed.qualified(e.relation)
            USING ERRCODE = '42703', HINT = format('call nv_embed.drop_auto_embed(%L, %L), or bring it back', nv_embed.qualified(e.relation), e.target);
    END IF;
    IF g.chunks IS NOT NULL THEN
        SELECT k.column_name INTO missing
        FROM nv_embed.key_columns(e.relation) AS k
        WHERE nv_embed.column_type(g.chunks, k.column_name) IS NULL;
        IF FOUND THEN
            RAISE EXCEPTION 'chunk table % has no column %, as the primary key of % has',
                nv_embed.qualified(g.chunks), quote_ident(missing), nv_embed.qualified(e.relation)
                USING ERRCODE = '42703', HINT = format(
                    'if that was renamed, rename the one of the chunk table too: ALTER TABLE %s RENAME … TO %I', nv_embed.qualified(g.chunks), missing
                );
        END IF;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_target(nv_embed.embedding, nv_embed.generation)
    IS 'Raises an error where the column for the vectors, or the chunk table, was dropped or renamed.';

CREATE OR REPLACE FUNCTION nv_embed.check_may_fill(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.check_target(e, g);
    IF NOT has_any_column_privilege(e.relation, 'SELECT')
        OR NOT (CASE WHEN g.chunks IS NULL THEN has_column_privilege(e.relation, g.target, 'UPDATE') ELSE has_table_privilege(g.chunks, 'INSERT') END)
    THEN
        RAISE EXCEPTION 'role % may not write the vectors of %', quote_ident(current_user), nv_embed.qualified(e.relation)
            USING ERRCODE = '42501', HINT = CASE
                WHEN g.chunks IS NULL THEN format('GRANT SELECT, UPDATE (%I) ON %s TO %I', g.target, nv_embed.qualified(e.relation), current_user)
                ELSE format('GRANT SELECT ON %s TO %I; GRANT INSERT ON %s TO PUBLIC', nv_embed.qualified(e.relation), current_user, nv_embed.qualified(g.chunks))
            END;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_may_fill(nv_embed.embedding, nv_embed.generation) IS 'Raises an error that says what to grant, before a model is asked.';

CREATE OR REPLACE FUNCTION nv_embed.pairs_sql() RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN '(SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM new_rows) AS n'
    ' JOIN (SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM old_rows) AS o ON n.nv_embed_place OPERATOR(pg_catalog.=) o.nv_embed_place';

COMMENT ON FUNCTION nv_embed.pairs_sql() IS 'A FROM item: the rows of an UPDATE as they are, n, and as they were, o.';

-- candidates: from where the rows come, and which of them await a vector.
CREATE OR REPLACE FUNCTION nv_embed.candidates_sql(e nv_embed.embedding, g nv_embed.generation, event text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN CASE
    WHEN event = 'insert' AND g.chunks IS NULL THEN
        format('new_rows AS n WHERE n.%I IS NULL AND %s', g.target, nv_embed.has_content(e.source, 'n'))
    WHEN event = 'insert' THEN
        format('new_rows AS n WHERE %s', nv_embed.has_content(e.source, 'n'))
    WHEN event = 'refresh' THEN
        format('%s AS n WHERE n.%I IS NULL AND %s', nv_embed.qualified(e.relation), g.target, nv_embed.has_content(e.source, 'n'))
    WHEN event = 'clear' THEN
        format('%s WHERE %s OPERATOR(pg_catalog.<>) %s AND pg_catalog.record_image_eq(ROW(n.%4$I), ROW(o.%4$I)) AND n.%4$I IS NOT NULL', nv_embed.pairs_sql(), nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'), g.target)
    WHEN event = 'update' AND g.chunks IS NOT NULL THEN
        -- Pieces of a row that moved were taken away too.
        format(
            '%s WHERE (%s OPERATOR(pg_catalog.<>) %s OR %s OPERATOR(pg_catalog.<>) %s) AND %s', nv_embed.pairs_sql(), nv_embed.rendered(e.source, 'n'),
            nv_embed.rendered(e.source, 'o'), nv_embed.key_sql(e.relation, 'n'), nv_embed.key_sql(e.relation, 'o'), nv_embed.has_content(e.source, 'n')
        )
    WHEN event = 'update' THEN
        -- A target that changed in the same statement is a vector that its writer brought along. One that became NULL is not: an upsert of whole rows
        -- writes NULL there, and a row with content is never without its vector.
        format(
            '%5$s WHERE %1$s OPERATOR(pg_catalog.<>) %2$s AND pg_catalog.record_image_eq(ROW(n.%3$I), ROW(o.%3$I))'
            ' OR n.%3$I IS NULL AND o.%3$I IS NOT NULL AND %4$s',
            nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'), g.target, nv_embed.has_content(e.source, 'n'), nv_embed.pairs_sql()
        )
END;

COMMENT ON FUNCTION nv_embed.candidates_sql(nv_embed.embedding, nv_embed.generation, text)
    IS 'FROM and WHERE of the rows, as n, that an insert, an update or a refresh leaves to be embedded, or whose vectors an update leaves to be cleared.';

CREATE OR REPLACE FUNCTION nv_embed.pages_sql(generation bigint, event text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(generation);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
BEGIN
    PERFORM nv_embed.check_may_fill(e, g);
    -- A row may have many pieces, and a page's are all in memory at once.
    RETURN format(
        'SELECT pg_catalog.array_agg(key) AS keys, pg_catalog.array_agg(text) AS texts,'
        ' pg_catalog.array_agg(CASE WHEN has_content THEN text END) AS contents'
        ' FROM (SELECT %s AS key, %s AS text, %s AS has_content,'
        ' (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) %s AS page FROM %s) AS candidate GROUP BY page',
        nv_embed.key_sql(e.relation, 'n'), nv_embed.rendered(e.source, 'n'), nv_embed.has_content(e.source, 'n'),
        CASE WHEN g.chunks IS NULL THEN 1000 ELSE 100 END, nv_embed.candidates_sql(e, g, event)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.pages_sql(bigint, text)
    IS 'A query: pages of rows to embed, with their keys, the texts they read, and those texts again but NULL for a row without content.';

CREATE OR REPLACE FUNCTION nv_embed.unchanged_sql(e nv_embed.embedding, g nv_embed.generation) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A row that is to be written is held, so that it reads the same when it is. Whoever writes pieces need not be allowed to hold rows, and does it for rows
    -- alone that the same transaction wrote.
    --
    -- LIMIT tells the planner how many rows there are, so that it finds a few by the primary key's index and does not read the table for them. Arrays are
    -- unnested in the select list, which streams; in FROM they would be written to a temporary file first.
    RETURN format(
        'SELECT ARRAY(SELECT f.place FROM (SELECT pg_catalog.unnest($1) AS key, pg_catalog.unnest($2) AS text,'
        ' pg_catalog.generate_series(1, pg_catalog.cardinality($1)) AS place LIMIT pg_catalog.cardinality($1)) AS f'
        ' JOIN %s AS t ON %s AND %s OPERATOR(pg_catalog.=) f.text%s)',
        nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f'), nv_embed.rendered(e.source, 't'),
        CASE WHEN g.chunks IS NULL THEN ' FOR NO KEY UPDATE OF t' ELSE '' END
    );
END
$$;

COMMENT ON FUNCTION nv_embed.unchanged_sql(nv_embed.embedding, nv_embed.generation)
    IS 'A statement: the places of those rows of a page that still read the same; its parameters are keys and texts.';

CREATE OR REPLACE FUNCTION nv_embed.write_sql(e nv_embed.embedding, g nv_embed.generation) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        'UPDATE %s AS t SET %I = f.vector::%s'
        ' FROM (SELECT pg_catalog.unnest($1) AS key, pg_catalog.unnest($2) AS vector,'
        ' pg_catalog.generate_series(1, pg_catalog.cardinality($1)) AS place LIMIT pg_catalog.cardinality($1)) AS f'
        ' WHERE f.place OPERATOR(pg_catalog.=) ANY ($3) AND %s',
        nv_embed.qualified(e.relation), g.target, nv_embed.type_sql(g.storage, g.dim), nv_embed.matched_sql(e.relation, 'f')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.write_sql(nv_embed.embedding, nv_embed.generation)
    IS 'A statement: write a page''s vectors; its parameters are keys, vectors and the places of the rows that are written.';

-- Keys and texts must not depend on how a session likes its numbers, dates, hours and bytes; what the user's triggers make of the same must. So these two,
-- which read rows, pin such settings, and what writes them does not. A key that was written by these settings is read as the same by any.

CREATE OR REPLACE FUNCTION nv_embed.next_page(pages refcursor, OUT keys text[], OUT texts text[], OUT contents text[])
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
BEGIN
    FETCH pages INTO keys, texts, contents;
END
$$;

COMMENT ON FUNCTION nv_embed.next_page(refcursor) IS 'The next page of a cursor over pages_sql; NULL where there is none.';

CREATE OR REPLACE FUNCTION nv_embed.unchanged(e nv_embed.embedding, g nv_embed.generation, keys text[], texts text[]) RETURNS int[]
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    places pg_catalog.int4[];
BEGIN
    EXECUTE nv_embed.unchanged_sql(e, g) INTO places USING keys, texts;
    RETURN places;
END
$$;

COMMENT ON FUNCTION nv_embed.unchanged(nv_embed.embedding, nv_embed.generation, text[], text[])
    IS 'The places of those rows of a page that still read the same; where they have a column for their vectors, they are held.';

CREATE OR REPLACE FUNCTION nv_embed.fill(generation bigint, pages refcursor, embeds boolean, OUT awaiting bigint, OUT written bigint)
LANGUAGE plpgsql STRICT
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(generation);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
    page record;
    page_written bigint;
BEGIN
    awaiting := 0;
    written := 0;
    LOOP
        page := nv_embed.next_page(pages);
        EXIT WHEN page.keys IS NULL;
        IF g.chunks IS NULL THEN
            page_written := nv_embed.fill_page(e, g, page.keys, page.texts, CASE WHEN embeds THEN page.contents END);
        ELSE
            page_written := nv_embed.fill_chunks(e, g, page.keys, page.texts);
        END IF;
        awaiting := awaiting OPERATOR(pg_catalog.+) pg_catalog.cardinality(page.texts);
        written := written OPERATOR(pg_catalog.+) page_written;
    END LOOP;
    CLOSE pages;
END
$$;

COMMENT ON FUNCTION nv_embed.fill(bigint, refcursor, boolean)
    IS 'Embeds the rows that a cursor over pages_sql hands out, or clears their vectors; how many awaited it, and how many were written.';

CREATE OR REPLACE FUNCTION nv_embed.fill_page(e nv_embed.embedding, g nv_embed.generation, keys text[], texts text[], contents text[]) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    vectors CONSTANT pg_catalog.text[] := CASE WHEN contents IS NOT NULL THEN nv_embed.embed_passages(contents, g.dim, g.model, g.revision, e.truncate) END;
    places CONSTANT pg_catalog.int4[] := nv_embed.unchanged(e, g, keys, texts);
    written bigint;
BEGIN
    EXECUTE nv_embed.write_sql(e, g) USING keys, vectors, places;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF contents IS NOT NULL AND nv_embed.may_be_rewritten(e.relation, g.target) THEN
        PERFORM nv_embed.check_same(e, g, nv_embed.chosen(keys, places), nv_embed.chosen(texts, places), nv_embed.chosen(vectors, places));
    END IF;
    RETURN written;
END
$$;

COMMENT ON FUNCTION nv_embed.fill_page(nv_embed.embedding, nv_embed.generation, text[], text[], text[])
    IS 'Embeds the contents of rows and writes the vectors, or clears them where contents is null; returns how many rows were written.';

-- A statement that writes a vector beside another text counts as one that brings its own.
CREATE OR REPLACE FUNCTION nv_embed.may_be_rewritten(relation regclass, target name) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before_each_update CONSTANT int := 1 | 2 | 16;  -- TRIGGER_TYPE_ROW, _BEFORE and _UPDATE of pg_trigger.h
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid IN (SELECT relation UNION ALL SELECT p.relid FROM pg_partition_tree(relation) AS p)
            AND t.tgtype & before_each_update = before_each_update AND t.tgenabled <> 'D'
            AND (
                coalesce(array_length(t.tgattr, 1), 0) = 0
                OR EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = t.tgrelid AND a.attname = target AND a.attnum = ANY (t.tgattr))
            )
    );
END
$$;

COMMENT ON FUNCTION nv_embed.may_be_rewritten(regclass, name) IS 'Whether triggers of a table may change what an UPDATE of that column writes to it.';

-- Triggers that run after the statement may have given the row another text; that statement saw to its vector.
CREATE OR REPLACE FUNCTION nv_embed.rewritten_sql(e nv_embed.embedding, g nv_embed.generation) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        'SELECT EXISTS (SELECT FROM (SELECT pg_catalog.unnest($1) AS key, pg_catalog.unnest($2) AS text, pg_catalog.unnest($3) AS vector'
        ' LIMIT pg_catalog.cardinality($1)) AS f'
        ' JOIN %s AS t ON %s AND %s OPERATOR(pg_catalog.<>) f.text AND pg_catalog.record_image_eq(ROW(t.%I), ROW(f.vector::%s)))',
        nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f'), nv_embed.rendered(e.source, 't'), g.target, nv_embed.type_sql(g.storage, g.dim)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.rewritten_sql(nv_embed.embedding, nv_embed.generation)
    IS 'A query: whether rows have the vectors of texts that they do not read; its parameters are keys, texts and vectors.';

CREATE OR REPLACE FUNCTION nv_embed.check_same(e nv_embed.embedding, g nv_embed.generation, keys text[], texts text[], vectors text[]) RETURNS void
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    is_rewritten boolean;
BEGIN
    EXECUTE nv_embed.rewritten_sql(e, g) INTO is_rewritten USING keys, texts, vectors;
    IF is_rewritten THEN
        RAISE EXCEPTION 'a trigger of % rewrites what is embedded while its vector is written', nv_embed.qualified(e.relation)
            USING ERRCODE = '27000', HINT = 'let it act on updates of what it reads: BEFORE UPDATE OF column, …';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_same(nv_embed.embedding, nv_embed.generation, text[], text[], text[])
    IS 'Raises an error where rows read otherwise than what their vectors were made of.';

CREATE OR REPLACE FUNCTION nv_embed.fill_chunks(e nv_embed.embedding, g nv_embed.generation, keys text[], texts text[]) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    pieces CONSTANT record := nv_embed.embed_chunks(texts, e.chunk_tokens, e.chunk_overlap, g.dim, g.model, g.revision);
    unchanged CONSTANT pg_catalog.int4[] := nv_embed.unchanged(e, g, keys, texts);
BEGIN
    EXECUTE nv_embed.write_chunks_sql(g.id) USING keys, pieces.places, pieces.starts, pieces.ends, pieces.vectors, unchanged;
    RETURN pg_catalog.cardinality(unchanged);
END
$$;

COMMENT ON FUNCTION nv_embed.fill_chunks(nv_embed.embedding, nv_embed.generation, text[], text[])
    IS 'Cuts the texts of rows, embeds the pieces and writes them; returns of how many rows.';

CREATE OR REPLACE FUNCTION nv_embed.refuse_hidden_rows(relation regclass, hidden bigint) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'row-level security hides % of the rows just written to % from role %', hidden, nv_embed.qualified(relation), quote_ident(current_user)
        USING ERRCODE = '42501',
              DETAIL = 'Their vectors cannot be written, and a row is never left without its vector.',
              HINT = 'let the policies of this role read and update the rows that it may write';
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_hidden_rows(regclass, bigint) IS 'Raises the error for rows that their writer may not see.';

CREATE OR REPLACE FUNCTION nv_embed.fill_written_rows() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    id CONSTANT bigint := TG_ARGV[0];
    event CONSTANT pg_catalog.text := nv_embed.fill_event(id, TG_OP);
    generation bigint;
    pages pg_catalog.refcursor;
    filled record;
BEGIN
    IF event IS NULL OR NOT EXISTS (SELECT FROM new_rows) THEN
        RETURN NULL;
    END IF;
    FOR generation IN
        SELECT k.id FROM nv_embed.kept_generations(id) AS k
        WHERE CASE event WHEN 'clear' THEN k.chunks IS NULL ELSE k.state OPERATOR(pg_catalog.=) 'live' END
    LOOP
        -- Opened here, where the transition tables are.
        OPEN pages FOR EXECUTE nv_embed.pages_sql(generation, event);
        SELECT f.awaiting, f.written INTO filled FROM nv_embed.fill(generation, pages, event OPERATOR(pg_catalog.<>) 'clear') AS f;
        IF filled.written OPERATOR(pg_catalog.<) filled.awaiting AND pg_catalog.row_security_active(TG_RELID) THEN
            PERFORM nv_embed.refuse_hidden_rows(TG_RELID, filled.awaiting OPERATOR(pg_catalog.-) filled.written);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.fill_written_rows()
    IS 'Statement trigger: in mode sync, embeds the rows that were written without a vector and those whose text changed; in mode off, clears the latter''s.';

CREATE OR REPLACE FUNCTION nv_embed.fill_event(id bigint, event text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mode CONSTANT text := (SELECT nv_embed.effective_mode(e.mode) FROM nv_embed.embedding AS e WHERE e.id = fill_event.id);
BEGIN
    RETURN CASE
        WHEN mode = 'off' AND event = 'UPDATE' THEN 'clear'
        WHEN mode = 'sync' OR mode IS NULL THEN lower(event)
    END;
END
$$;

COMMENT ON FUNCTION nv_embed.fill_event(bigint, text) IS 'What a statement''s rows need at once, in this transaction''s mode: insert, update or clear; NULL is nothing.';
