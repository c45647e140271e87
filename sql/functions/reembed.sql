-- reembed: from one generation to the next while the first answers.
--
-- planned → backfilling → indexing → verifying → ready → live → finished; cancelled before the cut-over, rolled_back after it. The generation that is not live
-- any more is dropped by `finish` alone: a search that began before a cut-over, or a rolling back, reads it to its end.
--
-- The next generation fills a column of its own, `<target>_g<id>`, or a chunk table, while the live one keeps answering. Triggers keep both in step with the
-- rows; what was there before is left to the workers, who cut vectors to size inside of the database where the model stays and dimensions get no more, and
-- embed anew otherwise. At the cut-over columns exchange their names, in a transaction of some milliseconds, and the generation that was live is kept in step
-- on. Chunk tables keep theirs: whoever reads one finds it by its number.
--
-- Each state is a row, each step moves it by one transaction, and a step that was killed is done again: `advance_reembedding` asks how far things are, and
-- never takes anybody's word for it.

CREATE OR REPLACE FUNCTION nv_embed.find_reembedding(id bigint) RETURNS nv_embed.reembedding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r nv_embed.reembedding;
    e nv_embed.embedding;
BEGIN
    SELECT * INTO r FROM nv_embed.reembedding AS s WHERE s.id = find_reembedding.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no re-embedding %', coalesce(id::text, 'null') USING ERRCODE = '42704', HINT = 'SELECT * FROM nv_embed.reembedding_status';
    END IF;
    SELECT * INTO STRICT e FROM nv_embed.embedding AS s WHERE s.id = r.embedding;
    IF NOT nv_embed.owns(e.relation) THEN
        RAISE EXCEPTION 'must be owner of table %', nv_embed.qualified(e.relation) USING ERRCODE = '42501';
    END IF;
    RETURN r;
END
$$;

COMMENT ON FUNCTION nv_embed.find_reembedding(bigint) IS 'A re-embedding of a table that the current role owns, or an error.';

CREATE OR REPLACE FUNCTION nv_embed.check_state(r nv_embed.reembedding, VARIADIC states text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF r.state <> ALL (states) THEN
        RAISE EXCEPTION 're-embedding % is %', r.id, r.state
            USING ERRCODE = '55000',
                DETAIL = format('This can be done while it is %s.', array_to_string(states, ' or ')),
                HINT = CASE
                    WHEN r.state IN ('backfilling', 'indexing', 'verifying') THEN format('SELECT nv_embed.advance_reembedding(%s) says how far it is', r.id)
                    WHEN r.state = 'planned' THEN format('SELECT nv_embed.advance_reembedding(%s) begins it', r.id)
                    WHEN r.state = 'ready' THEN format('SELECT nv_embed.cut_over(%s), or nv_embed.cancel(%1$s)', r.id)
                    WHEN r.state = 'live' THEN format('SELECT nv_embed.finish(%s), or nv_embed.roll_back(%1$s)', r.id)
                    WHEN r.ended_at IS NULL THEN format('SELECT nv_embed.finish(%s)', r.id)
                    ELSE 'it has ended: nv_embed.reembed() begins another one'
                END;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_state(nv_embed.reembedding, text[]) IS 'Raises an error for a re-embedding that is in none of these states.';

CREATE OR REPLACE FUNCTION nv_embed.set_state(id bigint, state text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE nv_embed.reembedding AS r SET state = set_state.state, changed_at = clock_timestamp() WHERE r.id = set_state.id;
$$;

COMMENT ON FUNCTION nv_embed.set_state(bigint, text) IS 'Brings a re-embedding into a state.';

-- Whoever comes after one that waits for a lock waits too. So none is waited for longer than a twentieth of a second, and then tried again. For half of
-- the patience the tries grow to what a tenth of a second leaves for the work itself; where statements that overlap take longer than that, they leave no
-- such gap at all, and the tries grow on to half a second.
--
-- An autovacuum holds a table for as long as it takes, and is cancelled by whoever has waited for it for deadlock_timeout. That is waited for with a lock
-- that holds up neither readers nor writers, and which keeps the next autovacuum away during the try. All locks of a try that fails are let go again: those
-- of several tables are had together or not at all.
CREATE OR REPLACE FUNCTION nv_embed.lock_briefly(relations regclass[], patience interval) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tables CONSTANT text := (SELECT string_agg(nv_embed.qualified(u.relation), ', ' ORDER BY u.place) FROM unnest(relations) WITH ORDINALITY AS u (relation, place));
    begun CONSTANT timestamptz := clock_timestamp();
    before CONSTANT text := current_setting('lock_timeout');
    cancels_after CONSTANT int := 500 + 1000 * extract(epoch FROM current_setting('deadlock_timeout')::interval);
    spent double precision := 0;
    is_locked boolean := false;
BEGIN
    WHILE NOT is_locked LOOP
        BEGIN
            IF spent > 0 THEN
                PERFORM set_config('lock_timeout', format('%sms', cancels_after), true);
                EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', tables);
            END IF;
            PERFORM set_config('lock_timeout', format('%sms', round(50 + 70 * spent + 760 * greatest(spent - 0.5, 0))), true);
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', tables);
            is_locked := true;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            spent := extract(epoch FROM clock_timestamp() - begun) / greatest(extract(epoch FROM patience), 0.001);
            IF spent >= 1 THEN
                RAISE EXCEPTION 'table % was not free for a moment', tables
                    USING ERRCODE = '55P03', DETAIL = 'Transactions that use it leave no gap.',
                        HINT = 'end the long ones (pg_stat_activity, by xact_start), or try again';
            END IF;
            PERFORM pg_sleep(0.02 + 0.1 * random());
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', before, true);
END
$$;

COMMENT ON FUNCTION nv_embed.lock_briefly(regclass[], interval) IS 'Locks tables for oneself, all of them or none, without having others wait for long.';

-- Beginning.

CREATE OR REPLACE FUNCTION nv_embed.reembed(
    relation regclass, target name DEFAULT 'embedding', model text DEFAULT NULL, dim int DEFAULT NULL, storage text DEFAULT NULL,
    rows_per_s double precision DEFAULT NULL, min_overlap double precision DEFAULT NULL, min_recall double precision DEFAULT NULL, source text DEFAULT NULL,
    chunk_tokens int DEFAULT NULL, chunk_overlap int DEFAULT NULL, start boolean DEFAULT true
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    coming nv_embed.generation := nv_embed.next_of(e, g, model, dim, storage, source, chunk_tokens, chunk_overlap);
    id bigint;
BEGIN
    PERFORM nv_embed.check_relation(relation);
    PERFORM nv_embed.check_reembedded(e, g);
    INSERT INTO nv_embed.generation (embedding, model, revision, dim, storage, target, state, source, chunk_tokens, chunk_overlap, chunks)
    VALUES (
        e.id, coming.model, coming.revision, coming.dim, coming.storage, e.target, coming.state, coming.source, coming.chunk_tokens, coming.chunk_overlap,
        CASE WHEN coming.chunk_tokens IS NOT NULL THEN
            nv_embed.make_chunks(relation, nv_embed.chunks_name(relation, nv_embed.column_of(target, g.id + 1)), target, coming.storage, coming.dim)
        END
    )
    RETURNING * INTO coming;
    INSERT INTO nv_embed.reembedding (embedding, from_generation, to_generation) VALUES (e.id, g.id, coming.id) RETURNING reembedding.id INTO id;
    PERFORM nv_embed.alter_reembedding(id, rows_per_s, min_overlap, min_recall);
    IF start THEN
        PERFORM nv_embed.begin_reembedding(id);
    END IF;
    RETURN id;
END
$$;

COMMENT ON FUNCTION nv_embed.reembed(regclass, name, text, int, text, double precision, double precision, double precision, text, int, int, boolean)
    IS 'Begins the move of an embedding to another model, dimension, storage or source, into pieces or out of them, while it goes on answering; returns the '
       're-embedding''s id. NULL keeps what is; another model comes in its native dimension; chunk_tokens 0 embeds rows whole.';

CREATE OR REPLACE FUNCTION nv_embed.alter_reembedding(
    id bigint, rows_per_s double precision DEFAULT NULL, min_overlap double precision DEFAULT NULL, min_recall double precision DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
BEGIN
    IF rows_per_s > 0 IS FALSE THEN
        RAISE EXCEPTION 'rows_per_s is %', rows_per_s USING ERRCODE = '22023', HINT = 'rows_per_s is above 0; without it workers take what they can';
    ELSIF least(min_overlap, min_recall) < 0 OR greatest(min_overlap, min_recall) > 1 THEN
        RAISE EXCEPTION 'min_overlap is % and min_recall %', coalesce(min_overlap::text, 'null'), coalesce(min_recall::text, 'null')
            USING ERRCODE = '22023', HINT = 'each is a share, from 0 to 1';
    END IF;
    PERFORM nv_embed.check_measurable((nv_embed.declaration(r.to_generation)).e, min_recall);
    UPDATE nv_embed.reembedding AS s
    SET rows_per_s = coalesce(alter_reembedding.rows_per_s, s.rows_per_s), min_overlap = coalesce(alter_reembedding.min_overlap, s.min_overlap),
        min_recall = coalesce(alter_reembedding.min_recall, s.min_recall)
    WHERE s.id = r.id;
END
$$;

COMMENT ON FUNCTION nv_embed.alter_reembedding(bigint, double precision, double precision, double precision)
    IS 'Has a re-embedding that is under way go by other limits: rows a second that are taken of it, and the least overlap and recall to be ready with. NULL leaves them.';

CREATE OR REPLACE FUNCTION nv_embed.next_of(
    e nv_embed.embedding, g nv_embed.generation, model text, dim int, storage text, source text, chunk_tokens int, chunk_overlap int
) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    coming nv_embed.generation := g;
BEGIN
    coming.chunks := NULL;
    coming.source := coalesce(source, g.source);
    coming.chunk_tokens := nullif(coalesce(chunk_tokens, g.chunk_tokens), 0);
    coming.chunk_overlap := CASE WHEN coming.chunk_tokens IS NULL THEN 0 ELSE coalesce(chunk_overlap, g.chunk_overlap) END;
    PERFORM nv_embed.check_options(e.mode, coalesce(storage, g.storage), coming.chunk_tokens, coming.chunk_overlap, e.truncate);
    PERFORM nv_embed.check_source(e.relation, coming.source, e.target);
    SELECT i.model, i.revision, i.dim, coalesce(next_of.storage, g.storage), 'planned' INTO coming.model, coming.revision, coming.dim, coming.storage, coming.state
    FROM nv_embed.identify(dim, coalesce(model, g.model)) AS i;
    IF dim IS NULL AND (coming.model, coming.revision) = (g.model, g.revision) THEN
        coming.dim := g.dim;
    END IF;
    IF (coming.model, coming.revision, coming.dim, coming.storage) = (g.model, g.revision, g.dim, g.storage) AND nv_embed.has_same_texts(coming, g) THEN
        RAISE EXCEPTION 'the vectors of % are such already', nv_embed.qualified(e.relation)
            USING ERRCODE = '22023', DETAIL = format('Model %s, revision %s, %s dimensions, %s, of %L.', g.model, g.revision, g.dim, g.storage, g.source),
                HINT = 'name another model, dim, storage or source, or other pieces';
    ELSIF g.chunks IS NOT NULL AND coming.chunk_tokens IS NULL AND nv_embed.column_type(e.relation, e.target) IS NOT NULL THEN
        RAISE EXCEPTION 'table % has a column % already', nv_embed.qualified(e.relation), quote_ident(e.target)
            USING ERRCODE = '42701', DETAIL = 'The vectors of whole rows would have this name.', HINT = 'rename the column first';
    END IF;
    RETURN coming;
END
$$;

COMMENT ON FUNCTION nv_embed.next_of(nv_embed.embedding, nv_embed.generation, text, int, text, text, int, int)
    IS 'The generation that a re-embedding with these arguments makes, or an error where there is nothing to do.';

CREATE OR REPLACE FUNCTION nv_embed.has_same_texts(one nv_embed.generation, other nv_embed.generation) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN (one.source, one.chunk_tokens, one.chunk_overlap) IS NOT DISTINCT FROM (other.source, other.chunk_tokens, other.chunk_overlap);

COMMENT ON FUNCTION nv_embed.has_same_texts(nv_embed.generation, nv_embed.generation) IS 'Whether two generations are of the same texts, in the same pieces.';

-- Of pieces too the vectors begin alike, but a row's are written under its job, as `chunk.sql` says: they are embedded again.
CREATE OR REPLACE FUNCTION nv_embed.begins_with(whole nv_embed.generation, part nv_embed.generation) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
RETURN (whole.model, whole.revision, whole.source) = (part.model, part.revision, part.source) AND whole.dim >= part.dim
    AND whole.chunk_tokens IS NULL AND part.chunk_tokens IS NULL;

COMMENT ON FUNCTION nv_embed.begins_with(nv_embed.generation, nv_embed.generation) IS 'Whether the vectors of one generation begin with those of another, so that these can be cut from them.';

CREATE OR REPLACE FUNCTION nv_embed.sampled_percent(relation regclass) RETURNS numeric
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    few CONSTANT int := 256;
BEGIN
    RETURN coalesce(
        (
            SELECT least(100, greatest(100 * few / greatest(sum(c.reltuples), 1)::numeric, 0.0001))
            FROM nv_embed.partitions(relation) AS t JOIN pg_class AS c ON c.oid = t.part WHERE t.is_leaf AND c.reltuples > 0
        ),
        100
    );
END
$$;

COMMENT ON FUNCTION nv_embed.sampled_percent(regclass) IS 'Of a table''s blocks, so many that a few hundred rows are expected in them.';

CREATE OR REPLACE FUNCTION nv_embed.sample_sql(e nv_embed.embedding) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        'SELECT ARRAY(SELECT %s FROM %s AS t TABLESAMPLE SYSTEM (%s) WHERE %s LIMIT 64)', nv_embed.rendered(e.source, 't'), nv_embed.qualified(e.relation),
        nv_embed.sampled_percent(e.relation), nv_embed.has_content(e.source, 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.sample_sql(nv_embed.embedding) IS 'A query: some texts of a table.';

CREATE OR REPLACE FUNCTION nv_embed.estimate_reembed(
    relation regclass, target name DEFAULT 'embedding', model text DEFAULT NULL, dim int DEFAULT NULL, storage text DEFAULT NULL, source text DEFAULT NULL,
    chunk_tokens int DEFAULT NULL, chunk_overlap int DEFAULT NULL,
    OUT rows bigint, OUT is_cut boolean, OUT tokens bigint, OUT seconds double precision, OUT vector_bytes bigint, OUT index_bytes bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    g CONSTANT nv_embed.generation := nv_embed.live_generation(relation, target);
    coming CONSTANT nv_embed.generation := nv_embed.next_of(e, g, model, dim, storage, source, chunk_tokens, chunk_overlap);
    bytes CONSTANT int := 8 + CASE coming.storage WHEN 'halfvec' THEN 2 ELSE 4 END * coming.dim;
    texts text[];
    measured record;
BEGIN
    PERFORM nv_embed.check_relation(relation);
    PERFORM nv_embed.check_reembedded(e, g);
    SELECT sum(t.rows - t.blank)::bigint INTO rows FROM nv_embed.tally AS t WHERE t.generation = g.id;
    is_cut := nv_embed.begins_with(g, coming);
    vector_bytes := CASE WHEN coming.chunk_tokens IS NULL THEN rows * bytes END;
    SELECT coalesce(sum(CASE i.dim WHEN g.dim THEN i.bytes::float8 * coming.dim / g.dim ELSE i.bytes END), 0)::bigint INTO index_bytes
    FROM nv_embed.vector_indexes(relation, target) AS i
    WHERE i.is_valid AND NOT i.is_partial AND (i.dim = g.dim OR i.dim = ANY (nv_embed.model_dims(coming)));
    IF is_cut THEN
        tokens := 0;
        seconds := 0;
        RETURN;
    END IF;
    EXECUTE nv_embed.sample_sql(nv_embed.as_declared(e, coming)) INTO texts;
    SELECT * INTO measured FROM nv_embed.measure(texts, coming, e.truncate);
    vector_bytes := coalesce(vector_bytes, (measured.pieces::float8 / nullif(cardinality(texts), 0) * rows * bytes)::bigint);
    tokens := measured.tokens::float8 / nullif(cardinality(texts), 0) * rows;
    seconds := measured.seconds / nullif(cardinality(texts), 0) * rows;
END
$$;

COMMENT ON FUNCTION nv_embed.estimate_reembed(regclass, name, text, int, text, text, int, int)
    IS 'What reembed() with the same arguments will take: rows with content, whether their vectors are cut without a model, else tokens and the model''s seconds by a sample '
       '(NULL where this database cannot ask a sidecar), bytes of the vectors beside the present ones and of their indexes.';

CREATE OR REPLACE FUNCTION nv_embed.check_reembedded(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other nv_embed.reembedding;
BEGIN
    SELECT * INTO other FROM nv_embed.reembedding AS r WHERE r.embedding = e.id AND r.ended_at IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION 're-embedding % of % is %', other.id, nv_embed.qualified(e.relation), other.state
            USING ERRCODE = '55006', HINT = CASE other.state
                WHEN 'live' THEN format('SELECT nv_embed.finish(%s), or nv_embed.roll_back(%1$s), first', other.id)
                WHEN 'rolled_back' THEN format('SELECT nv_embed.finish(%s) first', other.id)
                ELSE format('SELECT nv_embed.cancel(%s) first, or let it come to its end', other.id)
            END;
    END IF;
    PERFORM nv_embed.check_target(e, g);
END
$$;

COMMENT ON FUNCTION nv_embed.check_reembedded(nv_embed.embedding, nv_embed.generation) IS 'Raises an error for an embedding that cannot be moved now.';

CREATE OR REPLACE FUNCTION nv_embed.begin_reembedding(id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
    declared CONSTANT record := nv_embed.declaration(r.from_generation);
    e CONSTANT nv_embed.embedding := declared.e;
    live CONSTANT nv_embed.generation := declared.g;
    coming nv_embed.generation := (nv_embed.declaration(r.to_generation)).g;
BEGIN
    PERFORM nv_embed.check_state(r, 'planned');
    PERFORM nv_embed.lock_briefly(ARRAY[e.relation], '1 min');
    IF coming.chunk_tokens IS NULL THEN
        coming.target := nv_embed.column_of(e.target, coming.id);
        EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', nv_embed.qualified(e.relation), coming.target, nv_embed.type_sql(coming.storage, coming.dim));
        PERFORM nv_embed.dress_column(e.relation, live.target, coming.target) WHERE live.chunks IS NULL;
    ELSE
        PERFORM nv_embed.guard_chunks(e, coming);
    END IF;
    UPDATE nv_embed.generation AS g SET state = 'next', target = coming.target WHERE g.id = coming.id;
    PERFORM nv_embed.next_version(e);
    INSERT INTO nv_embed.backfill (generation) VALUES (coming.id);
    PERFORM nv_embed.set_state(id, 'backfilling');
    PERFORM nv_embed.wake();
END
$$;

COMMENT ON FUNCTION nv_embed.begin_reembedding(bigint) IS 'Adds the next generation''s column, or guards its chunk table, has the triggers fill it, and leaves the rows that are there to the workers.';

CREATE OR REPLACE FUNCTION nv_embed.dress_column(relation regclass, from_column name, to_column name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- PLAIN would refuse a row that a wider vector makes too long for its page.
    in_row CONSTANT boolean := (
        SELECT a.attstorage IN ('p', 'm') FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = from_column AND NOT a.attisdropped
    );
    granted record;
BEGIN
    IF in_row THEN
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE MAIN', nv_embed.qualified(relation), to_column);
    END IF;
    FOR granted IN
        SELECT x.privilege_type, x.is_grantable, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS grantee
        FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS x
        WHERE a.attrelid = relation AND a.attname = from_column AND NOT a.attisdropped
    LOOP
        EXECUTE format(
            'GRANT %s (%I) ON %s TO %s%s', granted.privilege_type, to_column, nv_embed.qualified(relation), granted.grantee,
            CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        );
    END LOOP;
    EXECUTE format(
        'COMMENT ON COLUMN %s.%I IS %L', nv_embed.qualified(relation), to_column,
        (SELECT col_description(a.attrelid, a.attnum) FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = from_column)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.dress_column(regclass, name, name) IS 'Gives a column the grants, the comment and the place of another one, be it in the row or in TOAST.';

CREATE OR REPLACE FUNCTION nv_embed.next_version(e nv_embed.embedding) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version int;
BEGIN
    PERFORM nv_embed.number_column(e, g) FROM nv_embed.kept_generations(e.id) AS g;
    UPDATE nv_embed.generation AS g SET version = 1 + (SELECT max(s.version) FROM nv_embed.generation AS s WHERE s.embedding = e.id)
    WHERE g.embedding = e.id AND g.state = 'live'
    RETURNING g.version INTO version;
    PERFORM nv_embed.set_triggers(e, version);
END
$$;

COMMENT ON FUNCTION nv_embed.next_version(nv_embed.embedding) IS 'Has all who write see an embedding''s generations as they are now; the table is locked meanwhile.';

-- Filling.

CREATE OR REPLACE FUNCTION nv_embed.allowance(generation bigint, most int) RETURNS int
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    of_embedding CONSTANT bigint := (SELECT g.embedding FROM nv_embed.generation AS g WHERE g.id = generation);
    r nv_embed.reembedding;
    allowed int;
BEGIN
    IF NOT EXISTS (
        SELECT FROM nv_embed.reembedding AS s
        WHERE s.embedding = of_embedding AND s.to_generation = generation AND s.rows_per_s IS NOT NULL AND s.state = 'backfilling'
    ) THEN
        RETURN most;
    END IF;
    SELECT * INTO r FROM nv_embed.reembedding AS s
    WHERE s.embedding = of_embedding AND s.to_generation = generation AND s.state = 'backfilling' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- What was not used up within a second, or within the time of one row, is forfeit: after a pause nobody gets a flood.
    allowed := least(floor(least(r.rows_per_s * extract(epoch FROM moment - r.allowed_at), greatest(r.rows_per_s, 1))), most);
    IF allowed >= least(most, ceil(r.rows_per_s / 5)) THEN
        UPDATE nv_embed.reembedding AS s
        SET allowed_at = greatest(r.allowed_at, moment - make_interval(secs => greatest(1, 1 / r.rows_per_s))) + make_interval(secs => allowed / r.rows_per_s)
        WHERE s.id = r.id;
        RETURN allowed;
    END IF;
    RETURN 0;
END
$$;

COMMENT ON FUNCTION nv_embed.allowance(bigint, int) IS 'How many rows a backfill may cut or queue now, at most so many; that many are used up.';

CREATE OR REPLACE FUNCTION nv_embed.cut_from(g nv_embed.generation) RETURNS nv_embed.generation
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    live nv_embed.generation;
BEGIN
    SELECT * INTO live FROM nv_embed.generation AS s
    WHERE g.state = 'next' AND s.embedding = g.embedding AND s.state = 'live' AND nv_embed.begins_with(s, g);
    RETURN live;
END
$$;

COMMENT ON FUNCTION nv_embed.cut_from(nv_embed.generation) IS 'The generation whose vectors begin with those of this one, or NULL.';

-- $1 is the generation. Rows that somebody holds are left out. A key's text has collation "C", which the key's column must not be compared by: that is not
-- its index's order, and where the column has a collation of its own, it is neither's.
CREATE OR REPLACE FUNCTION nv_embed.lock_step_sql(id bigint, is_first boolean) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
    e CONSTANT nv_embed.embedding := declared.e;
BEGIN
    RETURN format(
        $sql$
            WITH step AS MATERIALIZED (SELECT s.key COLLATE pg_catalog."default" AS key, s.awaits, s.place FROM (%s) AS s),
            held AS MATERIALIZED (SELECT f.key FROM step AS f JOIN %s AS t ON %s WHERE f.awaits FOR NO KEY UPDATE OF t SKIP LOCKED)
            SELECT ARRAY(SELECT key FROM held), ARRAY(SELECT key FROM step WHERE awaits AND $1 IS NOT NULL),
                (SELECT key FROM step ORDER BY place DESC LIMIT 1), (SELECT pg_catalog.count(*) FROM step)
        $sql$,
        nv_embed.step_sql(e, declared.g, is_first), nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.lock_step_sql(bigint, boolean) IS 'A statement: lock those of the next rows that await a vector.';

CREATE OR REPLACE FUNCTION nv_embed.lock_step(
    generation bigint, after text, most int, OUT held text[], OUT awaiting text[], OUT last text, OUT seen bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE nv_embed.lock_step_sql(generation, after IS NULL) INTO held, awaiting, last, seen USING generation, after, most;
END
$$;

COMMENT ON FUNCTION nv_embed.lock_step(bigint, text, int)
    IS 'Locks those of the next rows that await a vector and that nobody holds; their keys, those of all that await one, the last key, and how many rows it saw.';

-- $1 keys of rows that are held, $2 keys of all that await a vector, $3 the generation. A row whose live vector is not that of its text is queued instead.
-- One that its own triggers rewrite has a vector of another text then, and is returned to be queued, as by `write_back_sql`.
CREATE OR REPLACE FUNCTION nv_embed.cut_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
    live CONSTANT nv_embed.generation := nv_embed.cut_from(g);
BEGIN
    PERFORM nv_embed.check_may_fill(e, g);
    RETURN format(
        $sql$
            WITH f AS MATERIALIZED (SELECT pg_catalog.unnest($1) AS key LIMIT pg_catalog.cardinality($1)),
            o AS MATERIALIZED (SELECT f.key, %8$s AS digest FROM f JOIN %1$s AS t ON %5$s),
            cut AS (
                UPDATE %1$s AS t SET %2$I = %3$s::%4$s
                FROM o AS f
                WHERE %5$s AND t.%6$I IS NOT NULL
                    AND NOT EXISTS (SELECT FROM nv_embed.job AS j WHERE j.generation OPERATOR(pg_catalog.=) %7$s AND j.key OPERATOR(pg_catalog.=) f.key)
                RETURNING f.key, %8$s OPERATOR(pg_catalog.=) f.digest AS is_same, t.%2$I IS NOT NULL OR %9$s AS awaits
            ),
            queued AS (
                INSERT INTO nv_embed.job (generation, key, stale)
                SELECT $3, u.key, false FROM pg_catalog.unnest($2) AS u (key)
                WHERE NOT EXISTS (SELECT FROM cut AS c WHERE c.key OPERATOR(pg_catalog.=) u.key)
                ON CONFLICT (generation, key) DO NOTHING
                RETURNING 1
            )
            SELECT (SELECT pg_catalog.count(*) FROM cut) AS cut, (SELECT pg_catalog.count(*) FROM queued) AS queued,
                ARRAY(
                    SELECT ROW($3, c.key, NULL, NULL, true, NULL, 0, NULL, NULL)::nv_embed.job FROM cut AS c WHERE NOT c.is_same AND c.awaits
                ) AS rewritten
        $sql$,
        nv_embed.qualified(e.relation), g.target,
        CASE WHEN g.dim < live.dim THEN format('@extschema@.nv_truncate(t.%I, %s)', live.target, g.dim) ELSE format('t.%I', live.target) END,
        nv_embed.type_sql(g.storage, g.dim), nv_embed.matched_sql(e.relation, 'f'), live.target, live.id, nv_embed.digest_sql(e.source, 't'),
        nv_embed.has_content(e.source, 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.cut_sql(bigint) IS 'A statement: give rows what their live vectors begin with, and queue the others.';

-- Rows are locked by one statement and cut by the next, which sees what was committed until they were locked. They are held until the step ends, so it takes
-- no more of them than it can cut in a moment: a table with a graph of vectors takes milliseconds for each, others a tenth of one. The user's triggers run
-- here: no SET search_path, and every name with its schema.
CREATE OR REPLACE FUNCTION nv_embed.cut_step(generation bigint, after text) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    moment CONSTANT interval := '50 ms';
    begun CONSTANT timestamptz := pg_catalog.clock_timestamp();
    wanted int := 10;
    most int;
    queued bigint := 0;
    step record;
    done record;
BEGIN
    WHILE pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<) (begun OPERATOR(pg_catalog.+) moment) LOOP
        wanted := wanted OPERATOR(pg_catalog.*) 2;
        most := nv_embed.allowance(generation, wanted);
        EXIT WHEN most OPERATOR(pg_catalog.=) 0;
        step := nv_embed.lock_step(generation, after, most);
        EXECUTE nv_embed.cut_sql(generation) INTO done USING step.held, step.awaiting, generation;
        PERFORM nv_embed.queue_rewritten(generation, done.rewritten);
        queued := nv_embed.end_step(generation, step.last, step.seen OPERATOR(pg_catalog.<) most, done.queued) OPERATOR(pg_catalog.+) queued;
        EXIT WHEN step.seen OPERATOR(pg_catalog.<) most;
        after := step.last;
    END LOOP;
    RETURN queued;
END
$$;

COMMENT ON FUNCTION nv_embed.cut_step(bigint, text) IS 'Gives the next rows what their live vectors begin with, and queues those that it cannot; returns how many it queued.';

-- Going on.

CREATE OR REPLACE FUNCTION nv_embed.waiting_before(generation bigint, moment timestamptz) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT count(*) FROM nv_embed.job AS j
    WHERE j.generation = waiting_before.generation AND j.retry_at IS DISTINCT FROM 'infinity' AND j.queued_at <= moment
);

COMMENT ON FUNCTION nv_embed.waiting_before(bigint, timestamptz) IS 'How many rows wait for a worker since before a moment.';

CREATE OR REPLACE FUNCTION nv_embed.reembedding_index_steps(id bigint) RETURNS SETOF text
LANGUAGE plpgsql STABLE ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
    declared CONSTANT record := nv_embed.declaration(r.from_generation);
    e CONSTANT nv_embed.embedding := declared.e;
    live CONSTANT nv_embed.generation := declared.g;
    coming CONSTANT nv_embed.generation := (nv_embed.declaration(r.to_generation)).g;
BEGIN
    RETURN QUERY
    SELECT s.step
    FROM (
        SELECT DISTINCT ON (i.method, w.dim, i.storage) i.index, i.method, w.dim, i.storage, array_to_string(c.reloptions, ', ') AS options
        FROM nv_embed.find_indexes(coalesce(live.chunks, e.relation), live, nv_embed.pgvector_schema()) AS i
        JOIN pg_class AS c ON c.oid = i.index
        CROSS JOIN LATERAL (SELECT CASE i.dim WHEN live.dim THEN coming.dim ELSE i.dim END AS dim) AS w
        WHERE i.is_valid AND NOT i.is_partial AND w.dim = ANY (nv_embed.model_dims(coming) || coming.dim)
        ORDER BY i.method, w.dim, i.storage, i.index
    ) AS i
    CROSS JOIN LATERAL nv_embed.index_steps(coalesce(coming.chunks, e.relation), coming, i.dim, i.method, i.storage, true, coalesce(' WITH (' || i.options || ')', '')) WITH ORDINALITY AS s (step, place)
    ORDER BY i.dim DESC, i.method, i.storage, s.place;
END
$$;

COMMENT ON FUNCTION nv_embed.reembedding_index_steps(bigint)
    IS 'The statements that give the next generation the indexes that the live one has, in order; none where it has them. Each is to be run by itself, as by \gexec.';

CREATE OR REPLACE FUNCTION nv_embed.advance_reembedding(id bigint) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r nv_embed.reembedding := nv_embed.find_reembedding(id);
    state text := r.state;
BEGIN
    IF state = 'planned' THEN
        PERFORM nv_embed.begin_reembedding(id);
        RETURN 'backfilling';
    END IF;
    IF state = 'backfilling' AND r.backfilled_at IS NULL AND NOT EXISTS (SELECT FROM nv_embed.backfill AS b WHERE b.generation = r.to_generation) THEN
        UPDATE nv_embed.reembedding AS s SET backfilled_at = clock_timestamp() WHERE s.id = r.id RETURNING s.backfilled_at INTO r.backfilled_at;
    END IF;
    IF state = 'backfilling' AND r.backfilled_at IS NOT NULL AND nv_embed.waiting_before(r.to_generation, r.backfilled_at) = 0 THEN
        state := 'indexing';
    END IF;
    IF state = 'verifying' THEN
        PERFORM nv_embed.check_covered(r.from_generation, r.to_generation, r.backfilled_at);
        PERFORM nv_embed.verify(r);
        state := 'ready';
    END IF;
    IF state = 'indexing' AND NOT EXISTS (SELECT FROM nv_embed.reembedding_index_steps(id)) THEN
        state := 'verifying';
    END IF;
    IF state <> r.state THEN
        PERFORM nv_embed.set_state(id, state);
    END IF;
    RETURN state;
END
$$;

COMMENT ON FUNCTION nv_embed.advance_reembedding(bigint) IS 'Moves a re-embedding on as far as things are, up to ready; returns its state. To be called again and again.';

-- A row that awaits its vector in the old generation too is no loss. Both queues are compared, and the tallies too, which also know of rows that no trigger saw.
CREATE OR REPLACE FUNCTION nv_embed.check_covered(from_generation bigint, to_generation bigint, moment timestamptz) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waiting bigint;
    failed bigint;
    unseen bigint;
BEGIN
    SELECT count(*) FILTER (WHERE j.retry_at IS DISTINCT FROM 'infinity' AND j.queued_at <= moment), count(*) FILTER (WHERE j.retry_at = 'infinity')
    INTO waiting, failed
    FROM nv_embed.job AS j
    WHERE j.generation = to_generation AND NOT EXISTS (SELECT FROM nv_embed.job AS o WHERE o.generation = from_generation AND o.key = j.key);
    SELECT sum(CASE t.generation WHEN to_generation THEN 1 ELSE -1 END * (t.rows - t.blank - t.vectors + t.stale - t.jobs)) INTO unseen
    FROM nv_embed.tally AS t WHERE t.generation IN (from_generation, to_generation);
    IF waiting + failed > 0 OR unseen > 0 OR EXISTS (SELECT FROM nv_embed.backfill AS b WHERE b.generation = to_generation) THEN
        RAISE EXCEPTION 'not every row has its vector of the generation to be live'
            USING ERRCODE = '55000',
                DETAIL = format('%s wait for a worker, %s failed, %s were never queued.', waiting, failed, greatest(unseen, 0)),
                HINT = 'see that a worker runs; nv_embed.failures says why rows failed, nv_embed.retry() tries them again, nv_embed.refresh() queues what is missing';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_covered(bigint, bigint, timestamptz)
    IS 'Raises an error where rows that have their vector in one generation lack it in another, but for those that came after a moment.';

-- Cutting over, and back.

CREATE OR REPLACE FUNCTION nv_embed.await_queue(generation bigint, moment timestamptz, patience interval) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    until CONSTANT timestamptz := clock_timestamp() + patience;
BEGIN
    WHILE nv_embed.waiting_before(generation, moment) > 0 AND clock_timestamp() < until LOOP
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'a % transaction cannot see what workers do', current_setting('transaction_isolation')
                USING ERRCODE = '25001', HINT = 'do it in a read committed transaction';
        END IF;
        PERFORM pg_sleep(0.02);
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.await_queue(bigint, timestamptz, interval) IS 'Waits until what was queued before a moment has been embedded, or for so long.';

-- Rows that were written before the call have their vectors. One that is written while it waits for the lock may be in the queue, as always in mode async; in
-- mode sync these few are embedded here.
CREATE OR REPLACE FUNCTION nv_embed.exchange(e nv_embed.embedding, from_generation bigint, to_generation bigint, patience interval) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    few CONSTANT int := 1000;
    moment CONSTANT timestamptz := clock_timestamp();
    relation CONSTANT text := nv_embed.qualified(e.relation);
    leaving nv_embed.generation;
    coming nv_embed.generation;
BEGIN
    IF e.mode = 'sync' AND nv_embed.waiting_before(to_generation, moment) <= few THEN
        PERFORM nv_embed.embed_queued(to_generation);
    END IF;
    -- In mode sync too: a worker may have some.
    PERFORM nv_embed.await_queue(to_generation, moment, patience);
    -- What is refused anyway does not lock the table, nor embed a backlog under the lock.
    PERFORM nv_embed.check_covered(from_generation, to_generation, moment);
    PERFORM nv_embed.lock_briefly(ARRAY[e.relation], patience);
    IF e.mode = 'sync' THEN
        PERFORM nv_embed.embed_queued(to_generation);
    END IF;
    leaving := (nv_embed.declaration(from_generation)).g;
    coming := (nv_embed.declaration(to_generation)).g;
    PERFORM nv_embed.check_target(e, leaving);
    PERFORM nv_embed.check_target(e, coming);
    PERFORM nv_embed.check_covered(from_generation, to_generation, moment);
    IF leaving.chunks IS NULL THEN
        EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, leaving.target, nv_embed.column_of(e.target, leaving.id));
        leaving.target := nv_embed.column_of(e.target, leaving.id);
    END IF;
    IF coming.chunks IS NULL THEN
        EXECUTE format('ALTER TABLE %s RENAME COLUMN %I TO %I', relation, coming.target, e.target);
    END IF;
    UPDATE nv_embed.generation AS g SET state = 'previous', target = leaving.target WHERE g.id = leaving.id;
    UPDATE nv_embed.generation AS g SET state = 'live', target = e.target WHERE g.id = coming.id;
    PERFORM nv_embed.declare_live(e.id);
    PERFORM nv_embed.next_version(e);
END
$$;

COMMENT ON FUNCTION nv_embed.exchange(nv_embed.embedding, bigint, bigint, interval)
    IS 'Makes another generation the live one: catalog, columns'' names and triggers, at once.';

-- With its owner's rights: nobody else may say that present vectors are of another text. Anybody may call it, so a row of which it says nothing new is not locked.
CREATE OR REPLACE FUNCTION nv_embed.declare_live(embedding bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE nv_embed.embedding AS e
    SET source = g.source, chunk_tokens = g.chunk_tokens, chunk_overlap = g.chunk_overlap
    FROM nv_embed.generation AS g
    WHERE e.id = declare_live.embedding AND g.embedding = e.id AND g.state = 'live'
        AND (e.source, e.chunk_tokens, e.chunk_overlap) IS DISTINCT FROM (g.source, g.chunk_tokens, g.chunk_overlap);
$$;

COMMENT ON FUNCTION nv_embed.declare_live(bigint) IS 'Has a declaration say the texts and pieces of its live generation.';

CREATE OR REPLACE FUNCTION nv_embed.cut_over(id bigint, patience interval DEFAULT '1 min') RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
BEGIN
    PERFORM nv_embed.check_state(r, 'ready');
    PERFORM nv_embed.exchange((nv_embed.declaration(r.from_generation)).e, r.from_generation, r.to_generation, patience);
    PERFORM nv_embed.set_state(id, 'live');
END
$$;

COMMENT ON FUNCTION nv_embed.cut_over(bigint, interval) IS 'Has searches answered by the next generation from now on; the one before is kept in step until finish() or roll_back().';

CREATE OR REPLACE FUNCTION nv_embed.roll_back(id bigint, patience interval DEFAULT '1 min') RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
BEGIN
    PERFORM nv_embed.check_state(r, 'live');
    PERFORM nv_embed.exchange((nv_embed.declaration(r.from_generation)).e, r.to_generation, r.from_generation, patience);
    PERFORM nv_embed.set_state(id, 'rolled_back');
END
$$;

COMMENT ON FUNCTION nv_embed.roll_back(bigint, interval)
    IS 'Takes a cut-over back: the generation that was live before is again, with all that was written since. The other one is kept until finish().';

CREATE OR REPLACE FUNCTION nv_embed.finish(id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
BEGIN
    IF r.ended_at IS NOT NULL OR r.state <> 'rolled_back' THEN
        PERFORM nv_embed.check_state(r, 'live');
        PERFORM nv_embed.set_state(id, 'finished');
    END IF;
    PERFORM nv_embed.end_generation(id, CASE r.state WHEN 'live' THEN r.from_generation ELSE r.to_generation END);
    PERFORM nv_embed.rename_indexes(r.embedding);
END
$$;

COMMENT ON FUNCTION nv_embed.finish(bigint)
    IS 'Ends a re-embedding that was cut over or rolled back: drops the vectors of the generation that is not live. There is no way back then.';

-- Those that reembedding_index_steps() named, while their column had another name.
CREATE OR REPLACE FUNCTION nv_embed.rename_indexes(embedding bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    g CONSTANT nv_embed.generation := (SELECT s FROM nv_embed.generation AS s WHERE s.embedding = rename_indexes.embedding AND s.state = 'live');
    e CONSTANT nv_embed.embedding := (nv_embed.declaration(g.id)).e;
    i record;
BEGIN
    FOR i IN
        SELECT f.index, nv_embed.index_name(t.part, e.target, f.dim, f.storage, f.method, NULL) AS name
        FROM nv_embed.partitions(e.relation) AS t
        CROSS JOIN LATERAL nv_embed.find_indexes(t.part, g, nv_embed.pgvector_schema()) AS f
        JOIN pg_class AS c ON c.oid = f.index
        WHERE g.chunks IS NULL AND c.relname = nv_embed.index_name(t.part, nv_embed.column_of(e.target, g.id), f.dim, f.storage, f.method, nv_embed.qualified(f.index))
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', nv_embed.qualified(i.index), i.name);
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.rename_indexes(bigint) IS 'Names a generation''s indexes by their column, once that has its name for good.';

CREATE OR REPLACE FUNCTION nv_embed.cancel(id bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r CONSTANT nv_embed.reembedding := nv_embed.find_reembedding(id);
BEGIN
    PERFORM nv_embed.check_state(r, 'planned', 'backfilling', 'indexing', 'verifying', 'ready');
    PERFORM nv_embed.set_state(id, 'cancelled');
    PERFORM nv_embed.end_generation(id, r.to_generation);
END
$$;

COMMENT ON FUNCTION nv_embed.cancel(bigint) IS 'Ends a re-embedding before its cut-over: drops the vectors of the next generation.';

CREATE OR REPLACE FUNCTION nv_embed.drop_vectors(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF g.chunks IS NULL AND g.state <> 'planned' THEN
        EXECUTE format('ALTER TABLE %s DROP COLUMN IF EXISTS %I', nv_embed.qualified(e.relation), g.target);
    ELSIF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = g.chunks) THEN
        EXECUTE format('DROP TABLE %s', nv_embed.qualified(g.chunks));
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.drop_vectors(nv_embed.embedding, nv_embed.generation) IS 'Drops the column of a generation, if it has one yet, or its chunk table.';

CREATE OR REPLACE FUNCTION nv_embed.end_generation(id bigint, generation bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(generation);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
    changed CONSTANT regclass[] := ARRAY(
        SELECT c.oid::regclass FROM pg_class AS c WHERE c.oid = g.chunks OR c.oid = e.relation AND g.state <> 'planned' ORDER BY c.oid = g.chunks NULLS FIRST
    );
BEGIN
    PERFORM nv_embed.lock_briefly(changed, '1 min') WHERE cardinality(changed) > 0;
    PERFORM nv_embed.drop_vectors(e, g);
    PERFORM nv_embed.forget(generation);
    DELETE FROM nv_embed.generation AS s WHERE s.id = generation;
    IF g.state <> 'planned' THEN
        PERFORM nv_embed.next_version(e);
    END IF;
    UPDATE nv_embed.reembedding AS r SET ended_at = clock_timestamp() WHERE r.id = end_generation.id;
END
$$;

COMMENT ON FUNCTION nv_embed.end_generation(bigint, bigint)
    IS 'Ends a re-embedding and drops its generation that is not live: the column or chunk table with its indexes, its jobs and its numbers.';

CREATE OR REPLACE VIEW nv_embed.reembedding_status WITH (security_invoker) AS
SELECT r.id, e.relation, e.target, r.state, r.rows_per_s, r.min_overlap, r.min_recall, r.overlap, r.recall,
    o.model AS from_model, o.dim AS from_dim, o.storage AS from_storage, n.model AS to_model, n.dim AS to_dim, n.storage AS to_storage,
    n.source AS to_source, n.chunk_tokens AS to_chunk_tokens, n.chunk_overlap AS to_chunk_overlap,
    CASE WHEN b.counted IS NOT FALSE THEN t.rows - t.blank END AS rows,
    CASE WHEN b.counted IS NOT FALSE THEN t.vectors - t.stale END AS embedded,
    CASE WHEN b.counted IS NOT FALSE THEN coalesce((t.vectors - t.stale)::float8 / nullif(t.rows - t.blank, 0), 1) END AS progress,
    t.jobs - f.failed AS pending, f.failed, w.rate,
    CASE WHEN b.counted IS NOT FALSE THEN make_interval(secs => (t.rows - t.blank - t.vectors + t.stale - f.failed) / nullif(w.rate, 0)) END AS eta,
    r.created_at, r.changed_at, r.ended_at
FROM nv_embed.reembedding AS r
JOIN nv_embed.embedding AS e ON e.id = r.embedding
LEFT JOIN nv_embed.generation AS o ON o.id = r.from_generation
LEFT JOIN nv_embed.generation AS n ON n.id = r.to_generation
LEFT JOIN nv_embed.backfill AS b ON b.generation = n.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(s.rows), 0)::bigint AS rows, coalesce(sum(s.blank), 0)::bigint AS blank, coalesce(sum(s.vectors), 0)::bigint AS vectors,
        coalesce(sum(s.jobs), 0)::bigint AS jobs, coalesce(sum(s.stale), 0)::bigint AS stale
    FROM nv_embed.tally AS s WHERE s.generation = n.id
) AS t
CROSS JOIN LATERAL (SELECT count(*) AS failed FROM nv_embed.job AS j WHERE j.generation = n.id AND j.retry_at = 'infinity') AS f
CROSS JOIN LATERAL (SELECT nv_embed.rate(n.id, e.relation) AS rate) AS w
WHERE nv_embed.owns(e.relation) OR (SELECT nv_embed.is_worker());

COMMENT ON VIEW nv_embed.reembedding_status IS 'How far each re-embedding is; those that ended stand there too.';

GRANT SELECT ON nv_embed.reembedding_status TO PUBLIC;
