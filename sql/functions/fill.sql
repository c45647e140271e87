-- fill: give rows their vectors, in one statement.
--
-- The statement collects the rows that await a vector, embeds them by pages of a thousand texts, and writes the vectors by primary key. It is built as
-- text, because tables and columns are the user's; it runs with the rights and the search_path of whoever wrote the rows, since their table may have
-- triggers of its own. Hence the division here: what builds a statement pins its search_path, what runs it is one line with every name qualified.
--
-- Old and new rows of an UPDATE are paired by their order in the transition tables, not by key: the key itself may have changed.
--
-- A vector is written only where the row still reads as it was embedded, so that a row changed by its own triggers, or by somebody else while
-- `refresh` was waiting for the sidecar, is left to the statement that changed it.

CREATE OR REPLACE FUNCTION nv_embed.candidate_sql(event text, relation regclass, target name, source text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys CONSTANT text := (SELECT string_agg(format('n.%I AS k%s', k.column_name, k.place), ', ' ORDER BY k.place) FROM nv_embed.key_columns(relation) AS k);
    picked CONSTANT text := format('%s, %s AS text, %s AS has_content', keys, nv_embed.rendered(source, 'n'), nv_embed.has_content(source, 'n'));
BEGIN
    RETURN CASE event
        WHEN 'insert' THEN
            format('SELECT %s FROM new_rows AS n WHERE n.%I IS NULL AND %s', picked, target, nv_embed.has_content(source, 'n'))
        WHEN 'refresh' THEN
            format('SELECT %s FROM %s AS n WHERE n.%I IS NULL AND %s', picked, nv_embed.qualified(relation), target, nv_embed.has_content(source, 'n'))
        WHEN 'update' THEN
            -- A target that changed in the same statement is a vector that its writer brought along.
            format(
                'SELECT %1$s'
                ' FROM (SELECT pg_catalog.row_number() OVER () AS nv_embed_position, * FROM new_rows) AS n'
                ' JOIN (SELECT pg_catalog.row_number() OVER () AS nv_embed_position, * FROM old_rows) AS o'
                ' ON n.nv_embed_position OPERATOR(pg_catalog.=) o.nv_embed_position'
                ' WHERE %2$s OPERATOR(pg_catalog.<>) %3$s AND ROW(n.%4$I) OPERATOR(pg_catalog.*=) ROW(o.%4$I)',
                picked, nv_embed.rendered(source, 'n'), nv_embed.rendered(source, 'o'), target
            )
    END;
END
$$;

COMMENT ON FUNCTION nv_embed.candidate_sql(text, regclass, name, text) IS 'A query: key, text and has_content of the rows that await a vector.';

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

CREATE OR REPLACE FUNCTION nv_embed.fill_sql(id bigint, event text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    g nv_embed.generation;
    arrays text;
    unnested text;
    columns text;
    matched text;
BEGIN
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = fill_sql.id;
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = fill_sql.id AND s.state = 'live';
    PERFORM nv_embed.check_may_fill(e.relation, g.target);
    SELECT string_agg(format('pg_catalog.array_agg(k%1$s) AS k%1$s', k.place), ', ' ORDER BY k.place),
           string_agg(format('pg_catalog.unnest(p.k%s)', k.place), ', ' ORDER BY k.place),
           string_agg(format('k%s', k.place), ', ' ORDER BY k.place),
           string_agg(format('t.%I %s f.k%s', k.column_name, k.equals, k.place), ' AND ' ORDER BY k.place)
    INTO arrays, unnested, columns, matched
    FROM nv_embed.key_columns(e.relation) AS k;
    -- LIMIT tells the planner how many rows there are, so that it finds them by the primary key's index and never reads the table for a few.
    RETURN format(
        'WITH candidate AS MATERIALIZED (%1$s),'
        ' numbered AS (SELECT *, (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) 1000 AS page FROM candidate),'
        ' page AS MATERIALIZED ('
        ' SELECT %2$s, pg_catalog.array_agg(text) AS text,'
        ' nv_embed.embed_passages(pg_catalog.array_agg(CASE WHEN has_content THEN text END), %3$s, %4$L, %5$L, %6$L) AS vector'
        ' FROM numbered GROUP BY page),'
        ' written AS ('
        ' UPDATE %7$s AS t SET %8$I = f.vector::%9$s'
        ' FROM (SELECT f.* FROM page AS p, LATERAL ROWS FROM (%10$s, pg_catalog.unnest(p.text), pg_catalog.unnest(p.vector))'
        ' AS f (%11$s, text, vector) LIMIT $1) AS f'
        ' WHERE %12$s AND %13$s OPERATOR(pg_catalog.=) f.text RETURNING 1)'
        ' SELECT (SELECT pg_catalog.count(*) FROM candidate), (SELECT pg_catalog.count(*) FROM written)',
        nv_embed.candidate_sql(event, e.relation, g.target, e.source),
        arrays, g.dim, g.model, g.revision, e.truncate,
        nv_embed.qualified(e.relation), g.target, nv_embed.type_sql(g.storage, g.dim),
        unnested, columns, matched, nv_embed.rendered(e.source, 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.fill_sql(bigint, text) IS 'The statement that embeds what an insert, an update or a refresh left without a vector; it answers how many rows awaited one and how many got one.';

CREATE OR REPLACE FUNCTION nv_embed.check_may_fill(relation regclass, target name) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = target AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'column % of % holds its vectors and is gone', quote_ident(target), nv_embed.qualified(relation)
            USING ERRCODE = '42703', HINT = format('call nv_embed.drop_auto_embed(%L, %L), or bring the column back', nv_embed.qualified(relation), target);
    END IF;
    IF NOT has_column_privilege(relation, target, 'UPDATE') THEN
        RAISE EXCEPTION 'role % may not write the vectors of %', quote_ident(current_user), nv_embed.qualified(relation)
            USING ERRCODE = '42501', HINT = format('GRANT SELECT, UPDATE (%I) ON %s TO %I', target, nv_embed.qualified(relation), current_user);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_may_fill(regclass, name) IS 'Raises an error that says what to grant, before a model is asked.';

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

CREATE OR REPLACE FUNCTION nv_embed.embed_written_rows() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    written bigint;
    awaiting bigint;
    embedded bigint;
BEGIN
    SELECT pg_catalog.count(*) INTO written FROM new_rows;
    IF written OPERATOR(pg_catalog.=) 0 THEN
        RETURN NULL;
    END IF;
    EXECUTE nv_embed.fill_sql(TG_ARGV[0]::bigint, pg_catalog.lower(TG_OP)) INTO awaiting, embedded USING written;
    IF embedded OPERATOR(pg_catalog.<) awaiting AND pg_catalog.row_security_active(TG_RELID) THEN
        PERFORM nv_embed.refuse_hidden_rows(TG_RELID, awaiting OPERATOR(pg_catalog.-) embedded);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.embed_written_rows()
    IS 'Statement trigger: embeds the rows that an INSERT or COPY wrote without a vector, and those whose text an UPDATE changed.';
