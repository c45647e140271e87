-- storage: what vectors cost, by Postgres' own measure.

-- Vectors of one type and width are of one size, unless they were compressed: a few tell it of all.
CREATE OR REPLACE FUNCTION nv_embed.vector_bytes(g nv_embed.generation, holder regclass, dims int[]) RETURNS TABLE (dim int, storage text, bytes float8)
LANGUAGE plpgsql STABLE ROWS 15
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT w.dim, w.storage, avg(w.bytes)::float8 FROM (SELECT %1$I AS stored FROM %2$s WHERE %1$I IS NOT NULL LIMIT 100) AS s'
        ' CROSS JOIN LATERAL (%3$s) AS w (dim, storage, bytes) GROUP BY w.dim, w.storage',
        g.target, nv_embed.qualified(holder),
        (
            SELECT string_agg(
                format(
                    'SELECT %s, %L, pg_column_size(%s)', d.dim, t.storage,
                    nv_embed.indexed_sql(g, nv_embed.pgvector_schema(), t.storage, d.dim, 's.stored')
                ),
                ' UNION ALL '
            )
            FROM unnest(dims) AS d (dim) CROSS JOIN (VALUES ('vector'), ('halfvec'), ('bit')) AS t (storage)
        )
    );
END
$$;

COMMENT ON FUNCTION nv_embed.vector_bytes(nv_embed.generation, regclass, int[]) IS 'The bytes of a stored vector''s prefixes as vector, halfvec and bit, on the average.';

CREATE OR REPLACE FUNCTION nv_embed.relation_bytes(relation regclass, g nv_embed.generation)
RETURNS TABLE (place int, part text, name text, dim int, storage text, bytes bigint)
LANGUAGE plpgsql STABLE ROWS 5
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pgvector CONSTANT text := nv_embed.pgvector_schema();
BEGIN
    RETURN QUERY
    WITH parts AS MATERIALIZED (
        SELECT t.part AS oid, c.reltoastrelid AS toast FROM nv_embed.partitions(relation) AS t JOIN pg_class AS c ON c.oid = t.part WHERE t.is_leaf
    ),
    indexes AS MATERIALIZED (
        SELECT f.index, f.dim, f.storage, s.part AS oid
        FROM nv_embed.partitions(relation) AS t
        CROSS JOIN LATERAL nv_embed.find_indexes(t.part, g, pgvector) AS f
        CROSS JOIN LATERAL nv_embed.partitions(f.index) AS s
        WHERE t.part = relation OR NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = f.index)
    )
    SELECT 1, 'table', nv_embed.qualified(relation), NULL::int, NULL::text, sum(pg_table_size(p.oid) - coalesce(pg_total_relation_size(nullif(p.toast, 0)), 0))::bigint
    FROM parts AS p
    UNION ALL
    SELECT 2, 'toast', NULL, NULL, NULL, sum(coalesce(pg_total_relation_size(nullif(p.toast, 0)), 0))::bigint FROM parts AS p
    UNION ALL
    SELECT 3, 'index', nv_embed.qualified(i.index), i.dim, i.storage, sum(pg_relation_size(i.oid))::bigint FROM indexes AS i GROUP BY i.index, i.dim, i.storage
    UNION ALL
    SELECT 4, 'other indexes', NULL, NULL, NULL, sum(pg_relation_size(x.indexrelid))::bigint
    FROM parts AS p JOIN pg_index AS x ON x.indrelid = p.oid
    WHERE x.indexrelid NOT IN (SELECT i.oid FROM indexes AS i);
END
$$;

COMMENT ON FUNCTION nv_embed.relation_bytes(regclass, nv_embed.generation) IS 'The bytes of a table with its partitions: rows, TOAST, indexes on vectors, other indexes.';

CREATE OR REPLACE FUNCTION nv_embed.storage_report(relation regclass, target name DEFAULT 'embedding')
RETURNS TABLE (part text, name text, dim int, storage text, bytes bigint, bytes_per_row numeric, times_smaller numeric)
LANGUAGE plpgsql STABLE ROWS 20
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    holder CONSTANT regclass := coalesce(g.chunks, relation);
    rows bigint;
    vectors bigint;
BEGIN
    IF NOT nv_embed.owns(relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(relation) USING ERRCODE = '42501', HINT = 'it tells how many rows there are';
    ELSIF nv_embed.is_secured(relation, g) THEN
        RAISE EXCEPTION 'row-level security hides rows of %', nv_embed.qualified(relation) USING ERRCODE = '42501', HINT = 'it tells how many rows there are';
    END IF;
    PERFORM nv_embed.find_searched((SELECT c.reltype FROM pg_class AS c WHERE c.oid = relation), target, NULL, true);
    EXECUTE format('SELECT count(*) FROM %s', nv_embed.qualified(relation)) INTO rows;
    EXECUTE format('SELECT count(*) FROM %s WHERE %I IS NOT NULL', nv_embed.qualified(holder), g.target) INTO vectors;
    RETURN QUERY
    WITH measured AS (
        SELECT * FROM nv_embed.relation_bytes(holder, g)
    ),
    possible AS MATERIALIZED (
        SELECT * FROM nv_embed.vector_bytes(g, holder, nv_embed.model_dims(g))
    ),
    report AS (
        SELECT m.place, m.part, m.name, m.dim, m.storage, m.bytes::float8 FROM measured AS m
        UNION ALL
        SELECT 5, 'total', NULL, NULL, NULL, sum(m.bytes)::float8 FROM measured AS m
        UNION ALL
        SELECT k.place, k.part, NULL, p.dim, p.storage, p.bytes * vectors
        FROM possible AS p
        JOIN (VALUES (6, 'vectors', true), (7, 'possible vectors', false)) AS k (place, part, is_stored)
            ON k.is_stored = (p.dim = g.dim AND p.storage = g.storage)
    )
    SELECT r.part, r.name, r.dim, r.storage, r.bytes::bigint, round((r.bytes / nullif(rows, 0))::numeric, 1),
        CASE
            WHEN r.dim IS NOT NULL
                THEN round(((SELECT p.bytes * vectors FROM possible AS p WHERE p.dim = g.dim AND p.storage = 'vector') / nullif(r.bytes, 0))::numeric, 1)
        END
    FROM report AS r
    ORDER BY r.place, r.dim DESC, r.storage DESC, r.name;
END
$$;

COMMENT ON FUNCTION nv_embed.storage_report(regclass, name)
    IS 'Bytes of an embedding''s table or chunk table, its indexes and vectors, and of what these would be at other dimensions and types; for the owner.';
