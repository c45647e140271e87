-- search: rows by meaning.
--
-- Model and column are read from the catalog in the snapshot that the search itself runs in. The statement is built with a pinned search_path and run
-- without one, with the caller's rights: `filter` can do what its caller could do in a query of their own, and no more.
--
-- An approximate index is scanned on until k rows have passed the filter, instead of ending after its first candidates.

CREATE OR REPLACE FUNCTION nv_embed.live_generation(relation regclass, target name) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g nv_embed.generation;
BEGIN
    SELECT * INTO STRICT g FROM nv_embed.generation AS s WHERE s.embedding = e.id AND s.state = 'live';
    RETURN g;
END
$$;

COMMENT ON FUNCTION nv_embed.live_generation(regclass, name) IS 'The generation that answers searches.';

CREATE OR REPLACE FUNCTION nv_embed.row_relation(row_type regtype) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found_relation regclass;
BEGIN
    SELECT t.typrelid INTO found_relation FROM pg_type AS t WHERE t.oid = row_type AND t.typrelid <> 0;
    IF found_relation IS NULL THEN
        RAISE EXCEPTION 'nv_search needs a row of a table, not a %', row_type
            USING ERRCODE = '22023', HINT = 'write NULL::docs for table docs';
    END IF;
    RETURN found_relation;
END
$$;

COMMENT ON FUNCTION nv_embed.row_relation(regtype) IS 'The table whose rows have this type.';

CREATE OR REPLACE FUNCTION nv_embed.check_dim(g nv_embed.generation, dim int) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF dim <> g.dim THEN
        RAISE EXCEPTION 'column % holds % dimensions, not %', quote_ident(g.target), g.dim, dim
            USING ERRCODE = '0A000', HINT = 'leave dim out: searching by a prefix of the stored vector is not available in this version';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_dim(nv_embed.generation, int) IS 'Raises an error for a dim that cannot be searched by.';

CREATE OR REPLACE FUNCTION nv_embed.distance_sql(g nv_embed.generation, alias name) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        '%I.%I OPERATOR(%s.<=>) $1::%s', alias, g.target,
        (SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'),
        nv_embed.type_sql(g.storage, g.dim)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.distance_sql(nv_embed.generation, name) IS 'An SQL expression: how far a vector is from $1.';

-- No table has a column of the aliases' names, which would stand for them. The line ends keep a comment inside the filter from swallowing what follows it.
-- The filter is evaluated where only the user's own row is in sight.
CREATE OR REPLACE FUNCTION nv_embed.search_sql(relation regclass, g nv_embed.generation, k int, dim int, filter text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := (nv_embed.declaration(g.id)).e;
    passes CONSTANT text := coalesce(E' AND (\n' || filter || E'\n)', '');
BEGIN
    IF k < 0 IS NOT FALSE THEN
        RAISE EXCEPTION 'k is %', coalesce(k::text, 'null') USING ERRCODE = '22023', HINT = 'k is the number of rows wanted, 0 or more';
    END IF;
    PERFORM nv_embed.check_dim(g, dim);
    IF g.chunks IS NULL THEN
        RETURN format(
            'SELECT nv_embed_row, 1 OPERATOR(pg_catalog.-) (%1$s), NULL::pg_catalog.int4, NULL::pg_catalog.int4, NULL::pg_catalog.int4, NULL::pg_catalog.text'
            ' FROM %2$s AS nv_embed_row WHERE nv_embed_row.%3$I IS NOT NULL%4$s ORDER BY %1$s LIMIT %5$s',
            nv_embed.distance_sql(g, 'nv_embed_row'), nv_embed.qualified(relation), g.target, passes, k
        );
    END IF;
    RETURN format(
        'SELECT nv_embed_hit.nv_embed_row AS hit, 1 OPERATOR(pg_catalog.-) (%1$s) AS score, nv_embed_chunk.seq, nv_embed_chunk.start_char,'
        ' nv_embed_chunk.end_char, pg_catalog.substr(nv_embed_hit.nv_embed_text, nv_embed_chunk.start_char OPERATOR(pg_catalog.+) 1,'
        ' nv_embed_chunk.end_char OPERATOR(pg_catalog.-) nv_embed_chunk.start_char) AS content, %2$s AS key'
        ' FROM %3$s AS nv_embed_chunk CROSS JOIN LATERAL'
        ' (SELECT nv_embed_row, %4$s AS nv_embed_text FROM %5$s AS nv_embed_row WHERE %6$s%7$s) AS nv_embed_hit ORDER BY %1$s',
        nv_embed.distance_sql(g, 'nv_embed_chunk'), nv_embed.key_sql(relation, 'nv_embed_chunk'), nv_embed.qualified(g.chunks),
        nv_embed.rendered(e.source, 'nv_embed_row'), nv_embed.qualified(relation), nv_embed.same_key_sql(relation, 'nv_embed_row', 'nv_embed_chunk'), passes
    );
END
$$;

COMMENT ON FUNCTION nv_embed.search_sql(regclass, nv_embed.generation, int, int, text)
    IS 'The statement of nv_search; its $1 is the query''s vector. Of a chunk table, it gives pieces, as many as there are.';

-- A row whose pieces are near is met again and again: the first time is the best of it. The cursor is read until k rows were met, so the plan that is
-- quickest to begin is wanted, which is the index's.
CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query vector, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision, OUT seq int, OUT start_char int,
    OUT end_char int, OUT content text
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 10000 ROWS 10
SET hnsw.iterative_scan = strict_order
SET ivfflat.iterative_scan = relaxed_order
SET cursor_tuple_fraction = 0.001
AS $$
DECLARE
    searched CONSTANT pg_catalog.regclass := nv_embed.row_relation(pg_catalog.pg_typeof(relation));
    g CONSTANT nv_embed.generation := nv_embed.live_generation(searched, target);
    statement CONSTANT pg_catalog.text := nv_embed.search_sql(searched, g, k, dim, filter);
    met pg_catalog.text[] := '{}';
    pieces pg_catalog.refcursor;
    piece record;
BEGIN
    IF g.chunks IS NULL THEN
        RETURN QUERY EXECUTE statement USING query;
        RETURN;
    END IF;
    OPEN pieces NO SCROLL FOR EXECUTE statement USING query;
    WHILE pg_catalog.cardinality(met) OPERATOR(pg_catalog.<) k LOOP
        FETCH pieces INTO piece;
        EXIT WHEN NOT FOUND;
        CONTINUE WHEN piece.key OPERATOR(pg_catalog.=) ANY (met);
        met := met OPERATOR(pg_catalog.||) piece.key;
        hit := piece.hit;
        score := piece.score;
        seq := piece.seq;
        start_char := piece.start_char;
        end_char := piece.end_char;
        content := piece.content;
        RETURN NEXT;
    END LOOP;
    CLOSE pieces;
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, vector, int, name, int, boolean, real, text)
    IS 'The k rows whose vectors are nearest to this one, best first; score is the cosine similarity. Of a table with chunks, each row once, with its best piece: number, characters and text.';
