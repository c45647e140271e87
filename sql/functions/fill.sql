-- fill: give rows their vectors.
--
-- A cursor hands out the rows that await a vector, by pages of a thousand; each page is embedded in one call and written in one statement by primary
-- key. Both statements are built as text, because tables and columns are the user's, and run with the rights and the search_path of whoever wrote the
-- rows, since their table may have triggers of its own. Hence the division here: what builds a statement pins its search_path; what runs one does not,
-- and names everything with its schema.
--
-- Old and new rows of an UPDATE are paired by their order in the transition tables, not by key: the key itself may have changed.
--
-- A vector is written only where the row still reads as it was embedded. A row that its own triggers rewrote, or that somebody else changed while
-- `refresh` waited for the sidecar, is left to the statement that changed it.
--
-- Type names are written with their schema too: for types, a session's own pg_temp comes before everything else.

CREATE OR REPLACE FUNCTION nv_embed.qualified(relation regclass) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation);

COMMENT ON FUNCTION nv_embed.qualified(regclass) IS 'A table''s name with its schema, quoted as needed.';

CREATE OR REPLACE FUNCTION nv_embed.type_sql(storage text, dim int) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('%I.%I(%s)', n.nspname, storage, dim)
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector'
);

COMMENT ON FUNCTION nv_embed.type_sql(text, int) IS 'A column type of pgvector with its schema, for example public.halfvec(384).';

CREATE OR REPLACE FUNCTION nv_embed.check_target(relation regclass, target name) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = target AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'column % of % holds its vectors and is gone', quote_ident(target), nv_embed.qualified(relation)
            USING ERRCODE = '42703', HINT = format('call nv_embed.drop_auto_embed(%L, %L), or bring the column back', nv_embed.qualified(relation), target);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_target(regclass, name) IS 'Raises an error where the column for the vectors was dropped or renamed.';

CREATE OR REPLACE FUNCTION nv_embed.check_may_fill(relation regclass, target name) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.check_target(relation, target);
    IF NOT has_column_privilege(relation, target, 'UPDATE') OR NOT has_any_column_privilege(relation, 'SELECT') THEN
        RAISE EXCEPTION 'role % may not write the vectors of %', quote_ident(current_user), nv_embed.qualified(relation)
            USING ERRCODE = '42501', HINT = format('GRANT SELECT, UPDATE (%I) ON %s TO %I', target, nv_embed.qualified(relation), current_user);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_may_fill(regclass, name) IS 'Raises an error that says what to grant, before a model is asked.';

CREATE OR REPLACE FUNCTION nv_embed.pairs_sql() RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN '(SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM new_rows) AS n'
    ' JOIN (SELECT pg_catalog.row_number() OVER () AS nv_embed_place, * FROM old_rows) AS o ON n.nv_embed_place OPERATOR(pg_catalog.=) o.nv_embed_place';

COMMENT ON FUNCTION nv_embed.pairs_sql() IS 'A FROM item: the rows of an UPDATE as they are, n, and as they were, o.';

-- candidates: from where the rows come, and which of them await a vector.
CREATE OR REPLACE FUNCTION nv_embed.candidates_sql(e nv_embed.embedding, target name, event text) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN CASE event
    WHEN 'insert' THEN
        format('new_rows AS n WHERE n.%I IS NULL AND %s', target, nv_embed.has_content(e.source, 'n'))
    WHEN 'refresh' THEN
        format('%s AS n WHERE n.%I IS NULL AND %s', nv_embed.qualified(e.relation), target, nv_embed.has_content(e.source, 'n'))
    WHEN 'clear' THEN
        format('%s WHERE %s OPERATOR(pg_catalog.<>) %s AND pg_catalog.record_image_eq(ROW(n.%4$I), ROW(o.%4$I)) AND n.%4$I IS NOT NULL', nv_embed.pairs_sql(), nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'), target)
    WHEN 'update' THEN
        -- A target that changed in the same statement is a vector that its writer brought along. One that became NULL is not: an upsert of whole rows
        -- writes NULL there, and a row with content is never without its vector.
        format(
            '%5$s WHERE %1$s OPERATOR(pg_catalog.<>) %2$s AND pg_catalog.record_image_eq(ROW(n.%3$I), ROW(o.%3$I))'
            ' OR n.%3$I IS NULL AND o.%3$I IS NOT NULL AND %4$s',
            nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'), target, nv_embed.has_content(e.source, 'n'), nv_embed.pairs_sql()
        )
END;

COMMENT ON FUNCTION nv_embed.candidates_sql(nv_embed.embedding, name, text)
    IS 'FROM and WHERE of the rows, as n, that an insert, an update or a refresh leaves to be embedded, or whose vectors an update leaves to be cleared.';

CREATE OR REPLACE FUNCTION nv_embed.pages_sql(id bigint, event text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    g nv_embed.generation;
    keys text;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = pages_sql.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = pages_sql.id AND s.state = 'live';
    PERFORM nv_embed.check_may_fill(e.relation, g.target);
    SELECT string_agg(format('n.%I::pg_catalog.text', k.column_name), ', ' ORDER BY k.place) INTO keys FROM nv_embed.key_columns(e.relation) AS k;
    -- Keys travel as text, so that one shape of page serves a key of any types.
    RETURN format(
        'SELECT pg_catalog.array_agg(keys) AS keys, pg_catalog.array_agg(text) AS texts,'
        ' pg_catalog.array_agg(CASE WHEN has_content THEN text END) AS contents'
        ' FROM (SELECT ARRAY[%s] AS keys, %s AS text, %s AS has_content,'
        ' (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) 1000 AS page FROM %s) AS candidate GROUP BY page',
        keys, nv_embed.rendered(e.source, 'n'), nv_embed.has_content(e.source, 'n'), nv_embed.candidates_sql(e, g.target, event)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.pages_sql(bigint, text)
    IS 'A query: pages of rows to embed, with their keys, the texts they read, and those texts again but NULL for a row without content.';

CREATE OR REPLACE FUNCTION nv_embed.write_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    g nv_embed.generation;
    matched text;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = write_sql.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = write_sql.id AND s.state = 'live';
    SELECT string_agg(format('t.%I %s ($1)[f.place][%s]::%s', k.column_name, k.equals, k.place, k.type), ' AND ' ORDER BY k.place)
    INTO matched
    FROM nv_embed.key_columns(e.relation) AS k;
    -- LIMIT tells the planner how many rows there are, so that it finds a few by the primary key's index and does not read the table for them. Arrays are
    -- unnested in the select list, which streams; in FROM they would be written to a temporary file first.
    RETURN format(
        'UPDATE %s AS t SET %I = f.vector::%s'
        ' FROM (SELECT pg_catalog.unnest($2) AS text, pg_catalog.unnest($3) AS vector, pg_catalog.generate_series(1, $4) AS place LIMIT $4) AS f'
        ' WHERE %s AND %s OPERATOR(pg_catalog.=) f.text',
        nv_embed.qualified(e.relation), g.target, nv_embed.type_sql(g.storage, g.dim), matched, nv_embed.rendered(e.source, 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.write_sql(bigint) IS 'A statement: write a page''s vectors; its parameters are keys, texts, vectors and their number.';

CREATE OR REPLACE FUNCTION nv_embed.fill(id bigint, pages refcursor, embeds boolean, OUT awaiting bigint, OUT written bigint)
LANGUAGE plpgsql STRICT
AS $$
DECLARE
    write CONSTANT pg_catalog.text := nv_embed.write_sql(id);
    e nv_embed.embedding;
    g nv_embed.generation;
    page record;
    vectors pg_catalog.text[];
    page_written bigint;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id OPERATOR(pg_catalog.=) fill.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding OPERATOR(pg_catalog.=) fill.id AND s.state OPERATOR(pg_catalog.=) 'live';
    awaiting := 0;
    written := 0;
    LOOP
        FETCH pages INTO page;
        EXIT WHEN NOT FOUND;
        IF embeds THEN
            vectors := nv_embed.embed_passages(page.contents, g.dim, g.model, g.revision, e.truncate);
        END IF;
        EXECUTE write USING page.keys, page.texts, vectors, pg_catalog.cardinality(page.texts);
        GET DIAGNOSTICS page_written = ROW_COUNT;
        awaiting := awaiting OPERATOR(pg_catalog.+) pg_catalog.cardinality(page.texts);
        written := written OPERATOR(pg_catalog.+) page_written;
    END LOOP;
    CLOSE pages;
END
$$;

COMMENT ON FUNCTION nv_embed.fill(bigint, refcursor, boolean)
    IS 'Embeds the rows that a cursor over pages_sql hands out, or clears their vectors; how many awaited it, and how many were written.';

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

-- Keys and texts must not depend on how a session likes its numbers and dates.
CREATE OR REPLACE FUNCTION nv_embed.fill_written_rows() RETURNS trigger
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
AS $$
DECLARE
    id CONSTANT bigint := TG_ARGV[0];
    event CONSTANT pg_catalog.text := nv_embed.fill_event(id, TG_OP);
    pages pg_catalog.refcursor;
    filled record;
BEGIN
    IF event IS NOT NULL AND EXISTS (SELECT FROM new_rows) THEN
        -- Opened here, where the transition tables are.
        OPEN pages FOR EXECUTE nv_embed.pages_sql(id, event);
        SELECT f.awaiting, f.written INTO filled FROM nv_embed.fill(id, pages, event OPERATOR(pg_catalog.<>) 'clear') AS f;
        IF filled.written OPERATOR(pg_catalog.<) filled.awaiting AND pg_catalog.row_security_active(TG_RELID) THEN
            PERFORM nv_embed.refuse_hidden_rows(TG_RELID, filled.awaiting OPERATOR(pg_catalog.-) filled.written);
        END IF;
    END IF;
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
    mode text;
BEGIN
    SELECT nv_embed.effective_mode(e.mode) INTO mode FROM nv_embed.embedding AS e WHERE e.id = fill_event.id;
    RETURN CASE
        WHEN mode = 'off' AND event = 'UPDATE' THEN 'clear'
        WHEN mode = 'sync' OR mode IS NULL THEN lower(event)
    END;
END
$$;

COMMENT ON FUNCTION nv_embed.fill_event(bigint, text) IS 'What a statement''s rows need at once, in this transaction''s mode: insert, update or clear; NULL is nothing.';
