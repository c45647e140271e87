-- search: rows by meaning.
--
-- Model and column are read from the catalog in the snapshot that the search itself runs in. The statement is built with a pinned search_path and run
-- without one, with the caller's rights: `filter` can do what its caller could do in a query of their own, and no more.
--
-- A search has two stages. What is in an index, be it the first components of the vectors or their bits, proposes more rows than are wanted; the stored
-- vectors, whole, say which of them are nearest. An approximate index is scanned on until enough rows have passed the filter. Should it end before that,
-- which is its right, the rows are found without it.

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

CREATE OR REPLACE FUNCTION nv_embed.candidates(k int, oversample real) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN ceil(k * oversample::float8);

COMMENT ON FUNCTION nv_embed.candidates(int, real) IS 'How many rows are ranked for the best k.';

-- The stored vectors mend what a short prefix misses, and a small index stays in memory; where they do not, the longest prefix is the best.
CREATE OR REPLACE FUNCTION nv_embed.choose_index(g nv_embed.generation, holder regclass, pgvector text, wanted_dim int, rescore boolean)
RETURNS TABLE (dim int, storage text, is_partial boolean, lists int)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT i.dim, i.storage, i.is_partial, i.lists
    FROM nv_embed.find_indexes(holder, g, pgvector) AS i
    WHERE i.is_valid AND CASE WHEN wanted_dim IS NULL THEN NOT i.is_partial ELSE i.dim = wanted_dim END
    ORDER BY i.is_partial, i.storage = 'bit', CASE WHEN rescore THEN i.dim ELSE -i.dim END, i.method, i.storage, i.index
    LIMIT 1;
END;

COMMENT ON FUNCTION nv_embed.choose_index(nv_embed.generation, regclass, text, int, boolean)
    IS 'The index that a search takes its candidates from: the best that covers the table, or of this dim.';

CREATE OR REPLACE FUNCTION nv_embed.is_secured(relation regclass, g nv_embed.generation) RETURNS boolean
LANGUAGE sql STABLE
RETURN row_security_active(relation::oid) OR (g).chunks IS NOT NULL AND row_security_active((g).chunks::oid);

COMMENT ON FUNCTION nv_embed.is_secured(regclass, nv_embed.generation) IS 'Whether row-level security hides rows from the current role.';

CREATE OR REPLACE FUNCTION nv_embed.has_direction(v vector, dim int) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN vector_norm(subvector(v, 1, dim)) > 0;

COMMENT ON FUNCTION nv_embed.has_direction(vector, int) IS 'Whether the first dim components of a vector are any but zero.';

CREATE OR REPLACE FUNCTION nv_embed.width(v vector) RETURNS int
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN vector_dims(v);

COMMENT ON FUNCTION nv_embed.width(vector) IS 'The number of a vector''s components.';

-- In half precision a vector of another length may be out of range, or zero.
CREATE OR REPLACE FUNCTION nv_embed.unit(v vector) RETURNS vector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN l2_normalize(v);

COMMENT ON FUNCTION nv_embed.unit(vector) IS 'A vector, scaled to unit length.';

CREATE OR REPLACE FUNCTION nv_embed.distance_sql(g nv_embed.generation, pgvector text, storage text, dim int, vector text) RETURNS text
LANGUAGE sql STABLE
RETURN format(
    '(%s OPERATOR(%s.%s) %s)', nv_embed.indexed_sql(g, pgvector, storage, dim, vector), pgvector, CASE storage WHEN 'bit' THEN '<~>' ELSE '<=>' END,
    nv_embed.indexed_sql(g, pgvector, storage, dim, format('$1::%s.%s(%s)', pgvector, (g).storage, (g).dim))
);

COMMENT ON FUNCTION nv_embed.distance_sql(nv_embed.generation, text, text, int, text)
    IS 'An SQL expression: how far a stored vector is from $1, by what indexed_sql takes of both.';

-- The angle between two vectors is about the share of signs in which they differ, of half a turn.
CREATE OR REPLACE FUNCTION nv_embed.similarity_sql(storage text, dim int, distance text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE storage
    WHEN 'bit' THEN format('pg_catalog.cos(pg_catalog.pi() OPERATOR(pg_catalog.*) %s OPERATOR(pg_catalog./) %s)', distance, dim)
    ELSE format('1 OPERATOR(pg_catalog.-) %s', distance)
END;

COMMENT ON FUNCTION nv_embed.similarity_sql(text, int, text) IS 'An SQL expression: the cosine similarity, as a distance by distance_sql tells it.';

-- Names of ours begin with nv_embed_, so that none of the user's columns stands for them; the filter sees the user's table alone, by its own name, and the line
-- ends keep a comment in it from swallowing what follows.
--
-- A row becomes a composite value, for which what is toasted of it is fetched, only when it is known to be among the k.
CREATE OR REPLACE FUNCTION nv_embed.search_sql(
    t record, storage text, dim int, is_exact boolean, rescore boolean, k int, candidates bigint, filter text
) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := t.g;
    pgvector CONSTANT text := t.pgvector;
    passes CONSTANT text := coalesce(E' AND (\n' || filter || E'\n)', '');
    is_whole CONSTANT boolean := is_exact AND rescore;
    proposed_by CONSTANT text := nv_embed.distance_sql(
        g, pgvector, CASE WHEN is_whole THEN g.storage ELSE storage END, CASE WHEN is_whole THEN g.dim ELSE dim END,
        format('%s.%I', CASE WHEN g.chunks IS NULL THEN t.own ELSE 'nv_embed_chunk' END, g.target)
    );
    -- Nothing is added, so that no index has this order: Postgres has to compare all.
    distance CONSTANT text := CASE WHEN is_exact THEN '(0 OPERATOR(pg_catalog.+) ' || proposed_by || ')' ELSE proposed_by END;
    first CONSTANT text := CASE
        WHEN NOT is_exact THEN distance
        ELSE format('%s, %s', distance, t.key) || CASE WHEN g.chunks IS NULL THEN '' ELSE ', nv_embed_seq' END
    END;
    ranked_by CONSTANT text := CASE
        WHEN rescore THEN nv_embed.distance_sql(g, pgvector, g.storage, g.dim, 'nv_embed_near.nv_embed_vector') ELSE 'nv_embed_near.nv_embed_distance'
    END;
    score CONSTANT text := CASE
        WHEN rescore THEN nv_embed.similarity_sql(g.storage, g.dim, 'nv_embed_best.nv_embed_rank')
        ELSE nv_embed.similarity_sql(storage, dim, 'nv_embed_best.nv_embed_rank')
    END;
BEGIN
    IF g.chunks IS NULL THEN
        RETURN format(
            $sql$
                SELECT ROW(%1$s)::%2$s AS hit, %3$s AS score, NULL::pg_catalog.int4 AS seq, NULL::pg_catalog.int4 AS start_char, NULL::pg_catalog.int4 AS end_char,
                    NULL::pg_catalog.text AS content, pg_catalog.count(*) OVER () AS found, pg_catalog.count(*) OVER () AS proposed
                FROM (
                    SELECT nv_embed_near.*, %4$s AS nv_embed_rank
                    FROM (
                        SELECT %5$s.*, %5$s.%6$I AS nv_embed_vector, %7$s AS nv_embed_distance
                        FROM %2$s
                        WHERE %5$s.%6$I IS NOT NULL%8$s
                        ORDER BY %9$s
                        LIMIT %10$s
                    ) AS nv_embed_near
                    ORDER BY nv_embed_rank, %11$s
                    LIMIT %12$s
                ) AS nv_embed_best
            $sql$,
            t.columns, t.qualified, score, ranked_by, t.own, g.target, distance, passes, first, candidates, t.key, k
        );
    END IF;
    RETURN format(
        $sql$
            SELECT ROW(%1$s)::%2$s AS hit, %3$s AS score, nv_embed_seq AS seq, nv_embed_start AS start_char, nv_embed_end AS end_char,
                pg_catalog.substr(%4$s, nv_embed_start OPERATOR(pg_catalog.+) 1, nv_embed_end OPERATOR(pg_catalog.-) nv_embed_start) AS content,
                nv_embed_found AS found, nv_embed_proposed AS proposed
            FROM (
                SELECT nv_embed_near.*, pg_catalog.count(*) OVER () AS nv_embed_found
                FROM (
                    SELECT DISTINCT ON (%5$s) nv_embed_near.*, %6$s AS nv_embed_rank, pg_catalog.count(*) OVER () AS nv_embed_proposed
                    FROM (
                        SELECT %7$s.*, nv_embed_chunk.seq AS nv_embed_seq, nv_embed_chunk.start_char AS nv_embed_start, nv_embed_chunk.end_char AS nv_embed_end,
                            nv_embed_chunk.%8$I AS nv_embed_vector, %9$s AS nv_embed_distance
                        FROM %10$s AS nv_embed_chunk
                        JOIN (SELECT %7$s.* FROM %2$s WHERE true%11$s) AS %7$s ON %12$s
                        ORDER BY %13$s
                        LIMIT %14$s
                    ) AS nv_embed_near
                    ORDER BY %5$s, nv_embed_rank, nv_embed_near.nv_embed_seq
                ) AS nv_embed_near
                ORDER BY nv_embed_near.nv_embed_rank, %5$s
                LIMIT %15$s
            ) AS nv_embed_best
        $sql$,
        t.columns, t.qualified, score, nv_embed.rendered((nv_embed.declaration(g.id)).e.source, 'nv_embed_best'), t.key, ranked_by,
        t.own, g.target, distance, nv_embed.qualified(g.chunks), passes,
        nv_embed.same_key_sql(t.relation, t.own, 'nv_embed_chunk'),
        first, candidates, k
    );
END
$$;

COMMENT ON FUNCTION nv_embed.search_sql(record, text, int, boolean, boolean, int, bigint, text)
    IS 'The statement of nv_search; its $1 is the query''s vector. With each row it gives how many it found and, should they be fewer than k, from how many candidates.';

-- All that a search asks of the catalog, at once: each statement of its own would cost as much as all of this.
CREATE OR REPLACE FUNCTION nv_embed.look_up(row_type regtype, target name, wanted_dim int, rescore boolean)
RETURNS TABLE (
    relation regclass, g nv_embed.generation, pgvector text, own text, qualified text, columns text, key text, is_as_declared boolean, dim int, storage text,
    is_partial boolean, lists int
)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT c.oid::regclass, p.g, nv_embed.pgvector_schema(), quote_ident(c.relname), format('%I.%I', n.nspname, c.relname), s.columns, s.key,
        (
            k.is_table AND ((p.g).chunks IS NULL OR h.relkind IN ('r', 'p') AND NOT h.relhasrules AND h.relowner = c.relowner)
            AND a.atttypmod = (p.g).dim AND a.atttypid = nv_embed.storage_type((p.g).storage)
        ) IS TRUE,
        i.dim, i.storage, i.is_partial, i.lists
    FROM pg_type AS y
    JOIN pg_class AS c ON c.oid = y.typrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    -- Planning to read a view may call what its owner made.
    CROSS JOIN LATERAL (SELECT c.relkind IN ('r', 'p') AND NOT c.relhasrules AS is_table OFFSET 0) AS k
    CROSS JOIN LATERAL (SELECT CASE WHEN k.is_table THEN nv_embed.hold(c.oid) ELSE c.oid::regclass END AS relation OFFSET 0) AS w
    -- Below the lock: whether a row has been changed since is to be seen after that was waited for.
    CROSS JOIN LATERAL (
        SELECT nv_embed.placed(g, CASE g.xmax WHEN '0' THEN g.target ELSE nv_embed.column_name(g, w.relation) END) AS g, g.xmax <> '0' AS is_old, g.target
        FROM nv_embed.embedding AS e JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
        WHERE e.relation = w.relation AND e.target = look_up.target
        OFFSET 0
    ) AS p
    LEFT JOIN pg_class AS h ON h.oid = (p.g).chunks
    LEFT JOIN pg_attribute AS a ON a.attrelid = coalesce((p.g).chunks, c.oid)
        AND CASE WHEN p.is_old AND (p.g).attrelid = c.oid THEN a.attnum = (p.g).attnum ELSE a.attname = p.target END
    LEFT JOIN LATERAL nv_embed.choose_index(p.g, coalesce((p.g).chunks, c.oid::regclass), nv_embed.pgvector_schema(), wanted_dim, rescore) AS i ON true
    CROSS JOIN LATERAL (
        SELECT
            CASE WHEN p.is_old THEN nv_embed.present_columns(w.relation) ELSE (
                SELECT string_agg(quote_ident(u.attname), ', ' ORDER BY u.attnum)
                FROM pg_attribute AS u WHERE u.attrelid = c.oid AND u.attnum > 0 AND NOT u.attisdropped
            ) END AS columns,
            (
                SELECT string_agg(pg_get_indexdef(i.indexrelid, n, false), ', ' ORDER BY n)
                FROM pg_index AS i CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) AS n
                WHERE i.indrelid = c.oid AND i.indisprimary
            ) AS key
    ) AS s
    WHERE y.oid = row_type;
END;

COMMENT ON FUNCTION nv_embed.look_up(regtype, name, int, boolean)
    IS 'A table, its live generation, the names in a statement that searches it, whether it is as it was declared, and the index to take candidates from.';

-- Only the table's owner can alter what was declared, and must not have others run a function of the owner's by it: a cast of a type, a view's column.
CREATE OR REPLACE FUNCTION nv_embed.refuse_altered(relation regclass, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'the vectors of % are not where they were declared', nv_embed.qualified(relation)
        USING ERRCODE = '55000',
            DETAIL = format(
                'A table with a primary key, of which %s is a %s of the same owner''s, was declared.',
                CASE WHEN g.chunks IS NULL THEN 'column ' ELSE 'a chunk table''s column ' END || quote_ident(g.target), nv_embed.type_sql(g.storage, g.dim)
            ),
            HINT = 'take back what was altered, or call nv_embed.drop_auto_embed() and declare anew';
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_altered(regclass, nv_embed.generation) IS 'Raises the error for a table or chunk table that is not what was declared.';

CREATE OR REPLACE FUNCTION nv_embed.has_declared_pieces(relation regclass, g nv_embed.generation) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM nv_embed.chunk_columns(relation, g.target, g.storage, g.dim) AS k WHERE nv_embed.column_type(g.chunks, k.column_name) IS DISTINCT FROM k.type
    );
END
$$;

COMMENT ON FUNCTION nv_embed.has_declared_pieces(regclass, nv_embed.generation) IS 'Whether a chunk table has the columns that it was made with.';

CREATE OR REPLACE FUNCTION nv_embed.find_searched(row_type regtype, target name, wanted_dim int, rescore boolean) RETURNS record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    t record;
BEGIN
    SELECT * INTO t FROM nv_embed.look_up(row_type, target, wanted_dim, rescore) AS l;
    IF NOT FOUND THEN
        PERFORM nv_embed.find_embedding(nv_embed.row_relation(row_type), target);
    ELSIF NOT t.is_as_declared OR t.key IS NULL OR (t.g).chunks IS NOT NULL AND NOT nv_embed.has_declared_pieces(t.relation, t.g) THEN
        PERFORM nv_embed.refuse_altered(t.relation, t.g);
    ELSIF (t.g).target IS NULL OR (t.g).target LIKE '........pg.dropped.%' THEN
        PERFORM nv_embed.refuse_ended(t.relation);
    ELSIF t.dim IS NULL THEN
        PERFORM nv_embed.check_dim(t.g, wanted_dim);
    END IF;
    RETURN t;
END
$$;

COMMENT ON FUNCTION nv_embed.find_searched(regtype, name, int, boolean) IS 'What look_up finds, or an error that says what is amiss.';

-- `is_forced`: where all rows are searched, nothing but the index's order is quick. The planner's costs know nothing of what is toasted, so that it would
-- rather compare all rows of a table that it takes for small.
CREATE OR REPLACE FUNCTION nv_embed.plan_search(
    row_type regtype, target name, query vector, wanted_dim int, k int, rescore boolean, oversample real, filter text,
    INOUT is_exact boolean DEFAULT NULL, INOUT candidates bigint DEFAULT NULL, OUT lists int, OUT is_forced boolean, OUT is_iterative boolean, OUT is_secured boolean,
    OUT in_pieces boolean, OUT statement text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t CONSTANT record := nv_embed.find_searched(row_type, target, wanted_dim, rescore);
    g CONSTANT nv_embed.generation := t.g;
    dim CONSTANT int := coalesce(t.dim, wanted_dim, g.dim);
    storage CONSTANT text := coalesce(t.storage, g.storage);
BEGIN
    IF k < 0 IS NOT FALSE THEN
        RAISE EXCEPTION 'k is %', coalesce(k::text, 'null') USING ERRCODE = '22023', HINT = 'k is the number of rows wanted, 0 or more';
    ELSIF oversample BETWEEN 1 AND 10000 IS NOT TRUE THEN
        RAISE EXCEPTION 'oversample is %', coalesce(oversample::text, 'null')
            USING ERRCODE = '22023', HINT = 'for each row wanted, oversample is the number of candidates: from 1 to 10000';
    ELSIF rescore IS NULL THEN
        RAISE EXCEPTION 'rescore is null' USING ERRCODE = '22023', HINT = 'rescore is true or false';
    ELSIF nv_embed.width(query) <> g.dim THEN
        RAISE EXCEPTION 'the vector searched by has % dimensions, not %', nv_embed.width(query), g.dim
            USING ERRCODE = '22023', HINT = 'search by a vector as wide as the stored ones; dim says how much of it an index holds';
    ELSIF NOT nv_embed.has_direction(query, g.dim) THEN
        RAISE EXCEPTION 'the vector searched by is all zeros' USING ERRCODE = '22023', HINT = 'it has no direction, so nothing is near to it';
    END IF;
    candidates := coalesce(candidates, CASE
        WHEN g.chunks IS NULL AND (NOT rescore OR dim = g.dim AND storage = g.storage) THEN k
        WHEN storage = 'bit' THEN 4 * nv_embed.candidates(k, oversample)
        ELSE nv_embed.candidates(k, oversample)
    END);
    -- An index does not give more rows than that, and by a prefix of zeros all are equally far.
    is_exact := coalesce(is_exact, t.dim IS NULL AND dim = g.dim OR candidates > coalesce(current_setting('hnsw.max_scan_tuples', true)::int, 20000)
        OR rescore AND NOT nv_embed.has_direction(query, dim));
    lists := t.lists;
    in_pieces := g.chunks IS NOT NULL;
    is_secured := nv_embed.is_secured(t.relation, g);
    is_forced := NOT t.is_partial AND NOT is_exact AND filter IS NULL AND NOT is_secured;
    is_iterative := t.dim IS NULL OR filter IS NOT NULL OR is_secured OR candidates > 1000;
    statement := nv_embed.search_sql(t, storage, dim, is_exact, rescore, k, candidates, filter);
END
$$;

COMMENT ON FUNCTION nv_embed.plan_search(regtype, name, vector, int, int, boolean, real, text, boolean, bigint)
    IS 'How a search goes: its statement, whether that leaves nothing out, how many candidates it takes, and whether it must read an index.';

-- The condition is in the statement because rows that PL/pgSQL looks at come through a cursor, for which Postgres never plans several processes.
CREATE OR REPLACE FUNCTION nv_embed.enough_sql(statement text, k int, is_exact boolean, candidates bigint) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN format(
    'SELECT hit, score, seq, start_char, end_char, content FROM (%s) AS nv_embed_hit WHERE found OPERATOR(pg_catalog.>=) %s', statement, k
) || CASE WHEN is_exact THEN format(' OR proposed OPERATOR(pg_catalog.<) %s', candidates) ELSE '' END;

COMMENT ON FUNCTION nv_embed.enough_sql(text, int, boolean, bigint)
    IS 'A statement: what a search has found, if that is k rows, or all that there are; else nothing.';

-- The candidates are to come from one walk through the index, which has to keep as many in view. What the session has set is never lowered. A walk that can
-- be gone on with remembers all that it has passed, which takes its time: it is for searches that may leave rows out.
CREATE OR REPLACE FUNCTION nv_embed.set_scan(candidates bigint, lists int, is_forced boolean, is_iterative boolean) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before CONSTANT text[] := ARRAY[current_setting('hnsw.ef_search'), current_setting('ivfflat.probes'), current_setting('enable_sort')];
    done text;
BEGIN
    IF least(candidates, 1000) > before[1]::int THEN
        done := set_config('hnsw.ef_search', least(candidates, 1000)::text, true);
    END IF;
    IF ceil(sqrt(lists)) > before[2]::int THEN
        done := set_config('ivfflat.probes', ceil(sqrt(lists))::int::text, true);
    END IF;
    IF is_forced THEN
        done := set_config('enable_sort', 'off', true);
    END IF;
    IF NOT is_iterative THEN
        done := set_config('hnsw.iterative_scan', 'off', true);
    END IF;
    RETURN before;
END
$$;

COMMENT ON FUNCTION nv_embed.set_scan(bigint, int, boolean, boolean) IS 'Sets what a search wants of the planner and pgvector; returns what reset_scan takes.';

CREATE OR REPLACE FUNCTION nv_embed.reset_scan(settings text[]) RETURNS boolean
LANGUAGE sql
RETURN set_config('hnsw.ef_search', settings[1], true) IS NOT NULL
    AND set_config('ivfflat.probes', settings[2], true) IS NOT NULL AND set_config('enable_sort', settings[3], true) IS NOT NULL;

COMMENT ON FUNCTION nv_embed.reset_scan(text[]) IS 'Sets back what set_scan has set; an error does it too.';

-- What was found by an index and is too little is not returned, but found again: with more candidates, where the index gave as many as were asked for, as
-- happens when rows with many near pieces are met again and again; else without the index.
CREATE OR REPLACE FUNCTION @extschema@.nv_search(
    relation anyelement, query vector, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL, OUT hit anyelement, OUT score double precision, OUT seq int, OUT start_char int,
    OUT end_char int, OUT content text
) RETURNS SETOF record
LANGUAGE plpgsql STABLE PARALLEL UNSAFE COST 10000 ROWS 10
SET hnsw.iterative_scan = relaxed_order
SET ivfflat.iterative_scan = relaxed_order
SET jit = off
AS $$
DECLARE
    plan pg_catalog.record := nv_embed.plan_search(pg_catalog.pg_typeof(relation), target, query, dim, k, rescore, oversample, filter);
    before pg_catalog.text[];
    is_reset boolean;
    proposed bigint;
    is_short boolean;
BEGIN
    IF query IS NULL OR k OPERATOR(pg_catalog.=) 0 THEN
        RETURN;
    END IF;
    before := nv_embed.set_scan(plan.candidates, plan.lists, plan.is_forced, plan.is_iterative);
    LOOP
        RETURN QUERY EXECUTE nv_embed.enough_sql(plan.statement, k, plan.is_exact, plan.candidates) USING nv_embed.unit(query);
        EXIT WHEN FOUND;
        IF NOT plan.is_iterative AND NOT plan.is_exact THEN
            plan.is_iterative := pg_catalog.set_config('hnsw.iterative_scan', 'relaxed_order', true) IS NOT NULL;
            CONTINUE;
        END IF;
        -- Whole rows are fewer than k only where fewer were proposed.
        IF plan.in_pieces THEN
            EXECUTE pg_catalog.format('SELECT proposed FROM (%s) AS nv_embed_hit LIMIT 1', plan.statement) INTO proposed USING nv_embed.unit(query);
        END IF;
        EXIT WHEN plan.is_exact AND proposed IS NULL;
        is_short := proposed OPERATOR(pg_catalog.<) plan.candidates IS NOT FALSE;
        plan := nv_embed.plan_search(
            pg_catalog.pg_typeof(relation), target, query, dim, k, rescore, oversample, filter, plan.is_exact OR is_short,
            CASE WHEN is_short THEN plan.candidates ELSE plan.candidates OPERATOR(pg_catalog.*) 4 END
        );
        plan.is_iterative := true;
    END LOOP;
    is_reset := nv_embed.reset_scan(before);
END
$$;

COMMENT ON FUNCTION @extschema@.nv_search(anyelement, vector, int, name, int, boolean, real, text)
    IS 'The k rows whose vectors are nearest to this one, best first; score is the cosine similarity. Of a table with chunks, each once, with its best piece.';

-- EXPLAIN counts the rows that row-level security has hidden.
CREATE OR REPLACE FUNCTION nv_embed.explain_search(
    relation anyelement, query vector, k int DEFAULT 10, target name DEFAULT 'embedding', dim int DEFAULT NULL, rescore boolean DEFAULT true,
    oversample real DEFAULT 4, filter text DEFAULT NULL
) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET hnsw.iterative_scan = relaxed_order
SET ivfflat.iterative_scan = relaxed_order
SET jit = off
AS $$
DECLARE
    plan CONSTANT pg_catalog.record := nv_embed.plan_search(pg_catalog.pg_typeof(relation), target, query, dim, k, rescore, oversample, filter);
    before pg_catalog.text[];
    is_reset boolean;
BEGIN
    before := nv_embed.set_scan(plan.candidates, plan.lists, plan.is_forced, plan.is_iterative);
    RETURN QUERY EXECUTE pg_catalog.concat('EXPLAIN ', CASE WHEN plan.is_secured THEN '(COSTS OFF) ' ELSE '(ANALYZE, BUFFERS) ' END, plan.statement)
    USING nv_embed.unit(query);
    is_reset := nv_embed.reset_scan(before);
END
$$;

COMMENT ON FUNCTION nv_embed.explain_search(anyelement, vector, int, name, int, boolean, real, text)
    IS 'What Postgres does for nv_search with the same arguments: EXPLAIN (ANALYZE, BUFFERS), under row-level security without what it counts.';
