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

CREATE OR REPLACE FUNCTION nv_embed.search_sql(relation regclass, target name, k int, dim int, filter text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    distance text;
BEGIN
    IF k < 0 IS NOT FALSE THEN
        RAISE EXCEPTION 'k is %', coalesce(k::text, 'null') USING ERRCODE = '22023', HINT = 'k is the number of rows wanted, 0 or more';
    END IF;
    PERFORM nv_embed.check_dim(g, dim);
    distance := format(
        'nv_embed_row.%I OPERATOR(%s.<=>) $1::%s', g.target,
        (SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'),
        nv_embed.type_sql(g.storage, g.dim)
    );
    -- No table has a column of the alias's name, which would stand for it. The line ends keep a comment inside the filter from swallowing what follows it.
    RETURN format(
        E'SELECT nv_embed_row, 1 OPERATOR(pg_catalog.-) (%1$s) FROM %2$s AS nv_embed_row WHERE nv_embed_row.%3$I IS NOT NULL%4$s ORDER BY %1$s LIMIT %5$s',
        distance, nv_embed.qualified(relation), g.target, E' AND (\n' || filter || E'\n)', k
    );
END
$$;

COMMENT ON FUNCTION nv_embed.search_sql(regclass, name, int, int, text) IS 'The statement of nv_search; its $1 is the query''s vector.';

CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query vector, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 10000 ROWS 10
SET hnsw.iterative_scan = strict_order
SET ivfflat.iterative_scan = relaxed_order
AS $$
BEGIN
    RETURN QUERY EXECUTE nv_embed.search_sql(nv_embed.row_relation(pg_catalog.pg_typeof(relation)), target, k, dim, filter) USING query;
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, vector, int, name, int, boolean, real, text)
    IS 'The k rows whose vectors are nearest to this one, best first; score is the cosine similarity.';
