-- index: vectors, or the first components of them, in an index of pgvector's.
--
-- An index holds an expression of the stored vector: itself, its prefix, another type of it, its bits. The expression is written here and nowhere else, in
-- the very form in which Postgres prints it: an index is known by comparing texts, and a query that orders by the same expression is one that the planner can
-- answer from the index.

-- Each search asks for much of this, so it has SQL-standard bodies, which the planner puts in place: names are bound when the function is made, pgvector's
-- types among them, wherever they are moved to.

CREATE OR REPLACE FUNCTION nv_embed.pgvector_schema() RETURNS text
LANGUAGE sql STABLE
RETURN left('vector'::regtype::text, -length('.vector'));

COMMENT ON FUNCTION nv_embed.pgvector_schema() IS 'The schema of pgvector, quoted as needed. Wants a search_path without it.';

CREATE OR REPLACE FUNCTION nv_embed.storage_type(storage text) RETURNS regtype
LANGUAGE sql IMMUTABLE
RETURN CASE storage WHEN 'halfvec' THEN 'halfvec'::regtype WHEN 'vector' THEN 'vector'::regtype WHEN 'bit' THEN 'bit'::regtype END;

COMMENT ON FUNCTION nv_embed.storage_type(text) IS 'The type of vectors stored so.';

CREATE OR REPLACE FUNCTION nv_embed.type_storage(type oid) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE type WHEN 'halfvec'::regtype THEN 'halfvec' WHEN 'vector'::regtype THEN 'vector' WHEN 'bit'::regtype THEN 'bit' END;

COMMENT ON FUNCTION nv_embed.type_storage(oid) IS 'The storage that storage_type has this type for.';

-- Cosine distance ignores length, so a prefix need not be normalised again.
CREATE OR REPLACE FUNCTION nv_embed.prefix_sql(g nv_embed.generation, pgvector text, dim int, vector text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE WHEN dim < (g).dim THEN format('%s.subvector(%s, 1, %s)', pgvector, vector, dim) ELSE vector END;

COMMENT ON FUNCTION nv_embed.prefix_sql(nv_embed.generation, text, int, text) IS 'An SQL expression: the first dim components of a stored vector.';

CREATE OR REPLACE FUNCTION nv_embed.indexed_sql(g nv_embed.generation, pgvector text, storage text, dim int, vector text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN storage = 'bit' THEN format('(%s.binary_quantize(%s))::bit(%s)', pgvector, nv_embed.prefix_sql(g, pgvector, dim, vector), dim)
    WHEN storage = (g).storage AND dim = (g).dim THEN vector
    ELSE format('(%s)::%s.%s(%s)', nv_embed.prefix_sql(g, pgvector, dim, vector), pgvector, storage, dim)
END;

COMMENT ON FUNCTION nv_embed.indexed_sql(nv_embed.generation, text, text, int, text)
    IS 'An SQL expression: the first dim components of a stored vector, as a vector, halfvec or bit.';

CREATE OR REPLACE FUNCTION nv_embed.opclass(storage text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN storage || CASE storage WHEN 'bit' THEN '_hamming_ops' ELSE '_cosine_ops' END;

COMMENT ON FUNCTION nv_embed.opclass(text) IS 'The operator class of pgvector that orders vectors of this type by angle.';

CREATE OR REPLACE FUNCTION nv_embed.find_indexes(holder regclass, g nv_embed.generation, pgvector text)
RETURNS TABLE (index regclass, method text, dim int, storage text, is_valid boolean, is_partial boolean, lists int)
LANGUAGE sql STABLE ROWS 3
BEGIN ATOMIC
    SELECT i.indexrelid::regclass, m.amname::text, a.atttypmod, nv_embed.type_storage(a.atttypid), i.indisvalid, i.indpred IS NOT NULL,
        CASE m.amname WHEN 'ivfflat' THEN coalesce(
            (SELECT substring(array_to_string(c.reloptions, ' ') FROM 'lists=(\d+)')::int FROM pg_class AS c WHERE c.oid = i.indexrelid), 100
        ) END
    FROM pg_index AS i
    JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = 1
    JOIN pg_opclass AS o ON o.oid = i.indclass[0] AND o.opcname = nv_embed.opclass(nv_embed.type_storage(a.atttypid))::name
    JOIN pg_am AS m ON m.oid = o.opcmethod AND m.amname IN ('hnsw', 'ivfflat')
    WHERE i.indrelid = holder
        AND btrim(pg_get_indexdef(i.indexrelid, 1, false), '()')
            = btrim(nv_embed.indexed_sql(g, pgvector, nv_embed.type_storage(a.atttypid), a.atttypmod, quote_ident((g).target)), '()');
END;

COMMENT ON FUNCTION nv_embed.find_indexes(regclass, nv_embed.generation, text)
    IS 'Indexes of a table, a partition or a chunk table on a generation''s vectors. Wants a search_path without pgvector''s schema.';

CREATE OR REPLACE FUNCTION nv_embed.partitions(relation regclass) RETURNS TABLE (part regclass, parent regclass, is_leaf boolean, level int)
LANGUAGE plpgsql STABLE STRICT ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT t.relid, t.parentrelid, t.isleaf, t.level FROM pg_partition_tree(relation) AS t;
    IF NOT FOUND THEN
        RETURN QUERY SELECT relation, NULL::regclass, true, 0;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.partitions(regclass) IS 'pg_partition_tree, which knows nothing of a table or index without partitions.';

CREATE OR REPLACE FUNCTION nv_embed.vector_indexes(relation regclass, target name DEFAULT 'embedding')
RETURNS TABLE (index regclass, method text, dim int, storage text, is_valid boolean, is_partial boolean, bytes bigint)
LANGUAGE plpgsql STABLE ROWS 3
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    pgvector CONSTANT text := nv_embed.pgvector_schema();
BEGIN
    RETURN QUERY
    SELECT i.index, i.method, i.dim, i.storage, i.is_valid, i.is_partial, (SELECT sum(pg_relation_size(t.part))::bigint FROM nv_embed.partitions(i.index) AS t)
    FROM nv_embed.find_indexes(coalesce(g.chunks, relation), g, pgvector) AS i
    ORDER BY i.dim DESC, i.storage DESC, i.index;
END
$$;

COMMENT ON FUNCTION nv_embed.vector_indexes(regclass, name)
    IS 'The indexes that a search of this embedding can use: method, dimensions and type of what they hold, whether they are complete, and their size.';

-- Making one.

CREATE OR REPLACE FUNCTION nv_embed.check_dim(g nv_embed.generation, dim int) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF dim NOT BETWEEN 1 AND g.dim THEN
        RAISE EXCEPTION 'column % holds % dimensions, not %', quote_ident(g.target), g.dim, dim
            USING ERRCODE = '22023', HINT = format('give a dim of at most %s, or none', g.dim);
    ELSIF dim < g.dim THEN
        -- What is stored whole needs no sidecar, which may be away.
        IF dim <> ALL (nv_embed.model_dims(g)) THEN
            PERFORM nv_embed.identify(dim, g.model);
        END IF;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_dim(nv_embed.generation, int) IS 'Raises an error for a prefix that these vectors do not have, or that their model was not trained for.';

CREATE OR REPLACE FUNCTION nv_embed.check_index(method text, storage text, dim int) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most CONSTANT int := CASE storage WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 WHEN 'bit' THEN 64000 END;
BEGIN
    IF method IN ('hnsw', 'ivfflat') IS NOT TRUE THEN
        RAISE EXCEPTION 'method % is unknown', coalesce(quote_literal(method), 'null') USING ERRCODE = '22023', HINT = 'method is hnsw or ivfflat';
    ELSIF most IS NULL THEN
        RAISE EXCEPTION 'storage % is unknown', coalesce(quote_literal(storage), 'null') USING ERRCODE = '22023', HINT = 'an index''s storage is halfvec, vector or bit';
    ELSIF dim > most THEN
        RAISE EXCEPTION 'an index holds % dimensions of a % at most, not %', most, storage, dim
            USING ERRCODE = '22023', HINT = 'index a prefix, with a smaller dim; halfvec goes up to 4000, bit up to 64000';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_index(text, text, int) IS 'Raises an error for an index that pgvector does not have.';

-- A name that is cut has a digest in it, since partitions often differ at their ends alone; one that something else bears gets a number.
CREATE OR REPLACE FUNCTION nv_embed.index_name(holder regclass, target name, dim int, storage text, method text, leftover text) RETURNS name
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    suffix CONSTANT text := format('_%s_%s_%s', dim, storage, method);
    whole CONSTANT text := (SELECT c.relname || '_' || target FROM pg_class AS c WHERE c.oid = holder);
    schema_name CONSTANT name := (SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = holder);
    most CONSTANT int := 60 - octet_length(suffix);
    stem text := whole;
    found text;
BEGIN
    IF octet_length(whole) > most THEN
        WHILE octet_length(stem) > greatest(most - 9, 0) LOOP
            stem := left(stem, -1);
        END LOOP;
        stem := stem || '_' || left(md5(whole), 8);
    END IF;
    FOR number IN 1..99 LOOP
        found := stem || suffix || CASE number WHEN 1 THEN '' ELSE '_' || number END;
        EXIT WHEN to_regclass(format('%I.%I', schema_name, found)) IS NULL OR format('%I.%I', schema_name, found) = leftover;
    END LOOP;
    RETURN found;
END
$$;

COMMENT ON FUNCTION nv_embed.index_name(regclass, name, int, text, text, text) IS 'The name of an index: <table>_<target>_<dim>_<storage>_<method>.';

-- Of ivfflat's lists as pgvector advises: a thousandth of the rows, beyond a million the root. What else is not given is left to pgvector.
CREATE OR REPLACE FUNCTION nv_embed.index_options(holder regclass, method text, m int, ef_construction int, lists int) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    advised CONSTANT int := CASE method WHEN 'ivfflat' THEN (
        SELECT greatest(least(sum(c.reltuples) / 1000, sqrt(sum(c.reltuples))), 10)
        FROM nv_embed.partitions(holder) AS t JOIN pg_class AS c ON c.oid = t.part WHERE t.is_leaf AND c.reltuples > 0
    ) END;
    options CONSTANT text := concat_ws(', ', 'm = ' || m, 'ef_construction = ' || ef_construction, 'lists = ' || coalesce(lists, advised));
BEGIN
    RETURN CASE options WHEN '' THEN '' ELSE format(' WITH (%s)', options) END;
END
$$;

COMMENT ON FUNCTION nv_embed.index_options(regclass, text, int, int, int) IS 'The WITH of a CREATE INDEX of vectors, or nothing.';

CREATE OR REPLACE FUNCTION nv_embed.index_definition(holder regclass, g nv_embed.generation, dim int, storage text, method text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pgvector CONSTANT text := nv_embed.pgvector_schema();
    indexed CONSTANT text := nv_embed.indexed_sql(g, pgvector, storage, dim, quote_ident(g.target));
BEGIN
    RETURN format(
        '%s USING %s (%s %s.%s)', nv_embed.qualified(holder), method, CASE WHEN indexed = quote_ident(g.target) THEN indexed ELSE '(' || indexed || ')' END,
        pgvector, nv_embed.opclass(storage)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.index_definition(regclass, nv_embed.generation, int, text, text) IS 'What follows ON in the CREATE INDEX of an index of vectors, as far as its WITH.';

-- A partitioned index has no content, and may be invalid until all of its partitions' are attached.
CREATE OR REPLACE FUNCTION nv_embed.planned_indexes(holder regclass, g nv_embed.generation, dim int, method text, storage text)
RETURNS TABLE (part regclass, parent regclass, level int, is_leaf boolean, name text, leftover text, is_there boolean, is_attached boolean)
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pgvector CONSTANT text := nv_embed.pgvector_schema();
BEGIN
    RETURN QUERY
    SELECT t.part, t.parent, t.level, t.is_leaf,
        CASE WHEN i.is_usable THEN i.index ELSE format('%I.%I', n.nspname, nv_embed.index_name(t.part, g.target, dim, storage, method, i.index)) END,
        CASE WHEN NOT i.is_usable THEN i.index END, i.is_usable IS TRUE, i.is_attached IS TRUE
    FROM nv_embed.partitions(holder) AS t
    JOIN pg_class AS c ON c.oid = t.part
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT nv_embed.qualified(f.index) AS index, f.is_valid OR NOT t.is_leaf AS is_usable,
            EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = f.index) AS is_attached
        FROM nv_embed.find_indexes(t.part, g, pgvector) AS f
        WHERE f.method = planned_indexes.method AND f.storage = planned_indexes.storage AND f.dim = planned_indexes.dim AND NOT f.is_partial
        ORDER BY 2 DESC, 3 DESC, f.index
        LIMIT 1
    ) AS i ON true;
END
$$;

COMMENT ON FUNCTION nv_embed.planned_indexes(regclass, nv_embed.generation, int, text, text)
    IS 'An index for a table and each of its partitions: its name, whether it is there and attached to its parent''s, and what a build that failed has left of it.';

-- A partitioned table cannot be indexed concurrently: each partition is, and the indexes are then attached to one that has no content.
CREATE OR REPLACE FUNCTION nv_embed.index_steps(
    holder regclass, g nv_embed.generation, dim int, method text, storage text, "concurrently" boolean, options text
) RETURNS SETOF text
LANGUAGE plpgsql STABLE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_split CONSTANT boolean := "concurrently" AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = holder AND c.relkind = 'p');
    how CONSTANT text := CASE WHEN "concurrently" THEN ' CONCURRENTLY' ELSE '' END;
BEGIN
    RETURN QUERY
    WITH planned AS MATERIALIZED (
        SELECT * FROM nv_embed.planned_indexes(holder, g, dim, method, storage) AS p WHERE is_split OR p.part = holder
    ),
    steps AS (
        SELECT 1 AS phase, p.level, p.part, format('DROP INDEX%s %s', how, p.leftover) AS step FROM planned AS p WHERE p.leftover IS NOT NULL
        UNION ALL
        SELECT 2, p.level, p.part,
            format(
                'CREATE INDEX%s %I ON %s', CASE WHEN is_split AND NOT p.is_leaf THEN '' ELSE how END,
                nv_embed.index_name(p.part, g.target, dim, storage, method, p.leftover),
                CASE WHEN is_split AND NOT p.is_leaf THEN 'ONLY ' ELSE '' END || nv_embed.index_definition(p.part, g, dim, storage, method) || coalesce(
                    options, nv_embed.index_options(p.part, method, NULL, NULL, NULL)
                )
            )
        FROM planned AS p WHERE NOT p.is_there
        UNION ALL
        SELECT 3, -p.level, p.part, format('ALTER INDEX %s ATTACH PARTITION %s', o.name, p.name)
        FROM planned AS p JOIN planned AS o ON o.part = p.parent WHERE NOT p.is_attached
    )
    SELECT s.step FROM steps AS s ORDER BY s.phase, s.level, s.part::text;
END
$$;

COMMENT ON FUNCTION nv_embed.index_steps(regclass, nv_embed.generation, int, text, text, boolean, text)
    IS 'The statements that make an index of a generation''s vectors, in order; none where it is there already. Options NULL are those advised for each partition.';

CREATE OR REPLACE FUNCTION nv_embed.create_index_steps(
    relation regclass, target name DEFAULT 'embedding', dim int DEFAULT NULL, method text DEFAULT 'hnsw', storage text DEFAULT 'halfvec',
    concurrently boolean DEFAULT true, m int DEFAULT NULL, ef_construction int DEFAULT NULL, lists int DEFAULT NULL
) RETURNS SETOF text
LANGUAGE plpgsql STABLE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    width CONSTANT int := coalesce(dim, g.dim);
    options CONSTANT text := CASE
        WHEN num_nonnulls(m, ef_construction, lists) > 0 THEN nv_embed.index_options(coalesce(g.chunks, relation), method, m, ef_construction, lists)
    END;
BEGIN
    PERFORM nv_embed.check_index(method, storage, width);
    PERFORM nv_embed.check_dim(g, width);
    RETURN QUERY SELECT nv_embed.index_steps(coalesce(g.chunks, relation), g, width, method, storage, "concurrently", options);
END
$$;

COMMENT ON FUNCTION nv_embed.create_index_steps(regclass, name, int, text, text, boolean, int, int, int)
    IS 'The statements that make an index of an embedding''s vectors, in order; none where it is there already. Each is to be run by itself, as by \gexec.';

CREATE OR REPLACE FUNCTION nv_embed.create_index_sql(
    relation regclass, target name DEFAULT 'embedding', dim int DEFAULT NULL, method text DEFAULT 'hnsw', storage text DEFAULT 'halfvec',
    concurrently boolean DEFAULT true, m int DEFAULT NULL, ef_construction int DEFAULT NULL, lists int DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    steps CONSTANT text[] := ARRAY(SELECT nv_embed.create_index_steps(relation, target, dim, method, storage, "concurrently", m, ef_construction, lists));
BEGIN
    IF cardinality(steps) = 0 THEN
        RAISE EXCEPTION 'the vectors of % have this index already', nv_embed.qualified(relation)
            USING ERRCODE = '42P07', HINT = format('SELECT * FROM nv_embed.vector_indexes(%L, %L)', nv_embed.qualified(relation), target);
    ELSIF cardinality(steps) > 1 THEN
        RAISE EXCEPTION 'this index takes % statements', cardinality(steps)
            USING ERRCODE = '0A000',
                DETAIL = 'A partitioned table is indexed concurrently by its partitions, and what a failed build has left is dropped first.',
                HINT = format(
                    'run SELECT nv_embed.create_index_steps(…) with the same arguments and \gexec, or nv-embed index %s; or give concurrently => false',
                    nv_embed.qualified(relation)
                );
    END IF;
    RETURN steps[1];
END
$$;

COMMENT ON FUNCTION nv_embed.create_index_sql(regclass, name, int, text, text, boolean, int, int, int)
    IS 'The statement that makes an index of an embedding''s vectors, or of their first dim components; for \gexec. m, ef_construction and lists are pgvector''s.';

-- Watching one being made.

-- Two builds of one index at a time must not be: the second would take the first one's for what a failed build has left, and drop it once it is complete.
CREATE OR REPLACE FUNCTION nv_embed.reserve_index(relation regclass, target name DEFAULT 'embedding') RETURNS int
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    holder CONSTANT regclass := coalesce((nv_embed.live_generation(relation, target)).chunks, relation);
    class CONSTANT int := hashtext('nv-embed index');
BEGIN
    IF NOT pg_try_advisory_lock(class, holder::oid::int) THEN
        RETURN coalesce(
            (
                SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
                WHERE l.locktype = 'advisory' AND l.classid = class::oid AND l.objid = holder AND l.objsubid = 2 AND l.granted
            ),
            0
        );
    END IF;
    RETURN (SELECT p.pid FROM pg_stat_progress_create_index AS p JOIN nv_embed.partitions(holder) AS t ON t.part = p.relid LIMIT 1);
END
$$;

COMMENT ON FUNCTION nv_embed.reserve_index(regclass, name)
    IS 'Keeps others from building an index of these vectors until this session ends: NULL, or the process that builds one now. Plain CREATE INDEX is not kept from it.';

-- ivfflat counts the rows that it loads, hnsw does not know how many there will be: the table's blocks are what tells. They keep standing in phases after.
-- What a statement waits for is told for DROP INDEX too, and before a phase has begun.
CREATE OR REPLACE FUNCTION nv_embed.index_progress(builder int)
RETURNS TABLE (phase text, unit text, done bigint, total bigint, blocker int, blocker_role name, blocker_since timestamptz)
LANGUAGE plpgsql STRICT ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH seen AS (
        SELECT p.*, coalesce(CASE WHEN a.wait_event_type = 'Lock' THEN (pg_blocking_pids(a.pid))[1] END, nullif(p.current_locker_pid, 0)::int) AS waits_for
        FROM pg_stat_activity AS a LEFT JOIN pg_stat_progress_create_index AS p ON p.pid = a.pid
        WHERE a.pid = builder
    )
    SELECT s.phase || CASE WHEN s.partitions_total > 0 THEN format(', partition %s of %s', least(s.partitions_done + 1, s.partitions_total), s.partitions_total) ELSE '' END,
        c.unit, c.done, c.total, s.waits_for, b.usename, b.xact_start
    FROM seen AS s
    LEFT JOIN pg_stat_activity AS b ON b.pid = s.waits_for
    LEFT JOIN LATERAL (
        VALUES (1, 'transactions', s.lockers_done, s.lockers_total), (2, 'rows', s.tuples_done, s.tuples_total), (3, 'blocks', s.blocks_done, s.blocks_total)
    ) AS c (place, unit, done, total) ON c.total > 0 AND (c.place = 1) = (s.phase LIKE 'waiting %')
    ORDER BY c.place
    LIMIT 1;
END
$$;

COMMENT ON FUNCTION nv_embed.index_progress(int)
    IS 'How far a process is with its CREATE INDEX, and whose transaction it waits for: a row for a process that is there. Of a prepared transaction the blocker is 0.';

CREATE OR REPLACE FUNCTION nv_embed.find_index(
    relation regclass, target name DEFAULT 'embedding', dim int DEFAULT NULL, method text DEFAULT 'hnsw', storage text DEFAULT 'halfvec'
) RETURNS TABLE (index regclass, dims int, rows bigint, bytes bigint)
LANGUAGE plpgsql STABLE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT i.index, i.dim, sum(greatest(c.reltuples, 0))::bigint, i.bytes
    FROM nv_embed.vector_indexes(relation, target) AS i, nv_embed.partitions(i.index) AS t, pg_class AS c
    WHERE i.method = find_index.method AND i.storage = find_index.storage AND i.dim = coalesce(find_index.dim, (nv_embed.live_generation(relation, target)).dim)
        AND i.is_valid AND NOT i.is_partial AND t.is_leaf AND c.oid = t.part
    GROUP BY i.index, i.dim, i.bytes
    ORDER BY i.index
    LIMIT 1;
END
$$;

COMMENT ON FUNCTION nv_embed.find_index(regclass, name, int, text, text)
    IS 'The index that create_index_steps with the same arguments makes, once it is there; rows are those it had when it was made or last vacuumed.';
