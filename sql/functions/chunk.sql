-- chunk: the vectors of the pieces that long texts are cut into.
--
-- They lie in a table beside the user's own and belong to its owner. Nobody is granted anything by hand: row-level security shows a role the pieces of rows
-- that it sees and whose source columns it may read, whatever is granted, revoked or decided by policies of the user's table later on.
--
-- Rows that go, or change their key, take their pieces along: the queue's triggers do that with the rights of their owner (`queue.sql`), because whoever
-- deletes a row need not be allowed anything on its pieces. Hence `check_chunks`: what runs with those rights must be nothing that a user has made.
--
-- A row's job is also the lock on its pieces. Whoever changes a row touches its job first and its pieces after that; whoever writes pieces that nobody
-- else in the same transaction wrote the row of holds the job meanwhile. So two texts of one row never mix, and no text that was is left.

CREATE OR REPLACE FUNCTION nv_embed.column_type(relation regclass, column_name name) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format('%I.%I', n.nspname, t.typname) || CASE WHEN a.atttypmod > 0 THEN format('(%s)', a.atttypmod) ELSE '' END
        FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE a.attrelid = relation AND a.attname = column_name AND a.attnum > 0 AND NOT a.attisdropped
    );
END
$$;

COMMENT ON FUNCTION nv_embed.column_type(regclass, name) IS 'The type of a column with its schema, for example public.halfvec(384); NULL where there is no such column.';

CREATE OR REPLACE FUNCTION nv_embed.has_vector_sql(e nv_embed.embedding, g nv_embed.generation, alias name) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF g.chunks IS NULL THEN
        RETURN format('(%I.%I IS NOT NULL)', alias, g.target);
    END IF;
    RETURN format(
        'EXISTS (SELECT FROM %s AS nv_embed_chunk WHERE %s)', nv_embed.qualified(g.chunks), nv_embed.same_key_sql(e.relation, 'nv_embed_chunk', quote_ident(alias))
    );
END
$$;

COMMENT ON FUNCTION nv_embed.has_vector_sql(nv_embed.embedding, nv_embed.generation, name) IS 'An SQL condition: a row has a vector, or pieces that have.';

-- Declaring.

CREATE OR REPLACE FUNCTION nv_embed.chunks_name(relation regclass, target name) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    suffix CONSTANT text := '_chunk';
    schema_name name;
    stem text;
BEGIN
    SELECT n.nspname, c.relname || '_' || target INTO STRICT schema_name, stem
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = relation;
    WHILE octet_length(stem || suffix) > 63 LOOP
        stem := left(stem, -1);
    END LOOP;
    RETURN format('%I.%I', schema_name, stem || suffix);
END
$$;

COMMENT ON FUNCTION nv_embed.chunks_name(regclass, name) IS 'The name of an embedding''s chunk table: <table>_<target>_chunk in the table''s schema.';

CREATE OR REPLACE FUNCTION nv_embed.chunk_columns(relation regclass, target name, storage text, dim int)
RETURNS TABLE (place bigint, column_name name, type text, definition text)
LANGUAGE plpgsql STABLE STRICT ROWS 5
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT k.place, k.column_name, k.type,
        format('%I %s%s NOT NULL', k.column_name, k.type, ' COLLATE ' || quote_ident(n.nspname) || '.' || quote_ident(l.collname))
    FROM nv_embed.key_columns(relation) AS k
    JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = k.column_name
    LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
    LEFT JOIN pg_namespace AS n ON n.oid = l.collnamespace
    UNION ALL
    SELECT 1000 + c.place, c.column_name, c.type, format('%I %s NOT NULL', c.column_name, c.type)
    FROM (
        VALUES (1, 'seq'::name, 'pg_catalog.int4'), (2, 'start_char', 'pg_catalog.int4'), (3, 'end_char', 'pg_catalog.int4'),
            (4, target, nv_embed.type_sql(storage, dim))
    ) AS c (place, column_name, type)
    ORDER BY 1;
END
$$;

COMMENT ON FUNCTION nv_embed.chunk_columns(regclass, name, text, int)
    IS 'The columns of a chunk table: the primary key, the number of the piece, its first character and the one after its last, its vector.';

CREATE OR REPLACE FUNCTION nv_embed.make_chunks(relation regclass, chunks text, target name, storage text, dim int) RETURNS regclass
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found CONSTANT regclass := to_regclass(chunks);
    c pg_class;
    twice name;
BEGIN
    SELECT s.column_name INTO twice FROM nv_embed.chunk_columns(relation, target, storage, dim) AS s GROUP BY s.column_name HAVING count(*) > 1;
    IF twice IS NOT NULL THEN
        RAISE EXCEPTION 'the chunk table of % would have two columns %', nv_embed.qualified(relation), quote_ident(twice)
            USING ERRCODE = '42701',
                HINT = 'beside the primary key a chunk table has seq, start_char, end_char and the target: rename the key''s column, or name another target';
    END IF;
    IF found IS NOT NULL THEN
        PERFORM nv_embed.check_adopted(found, relation, target, storage, dim);
        RETURN found;
    END IF;
    SELECT * INTO STRICT c FROM pg_class AS s WHERE s.oid = relation;
    EXECUTE format(
        'CREATE %s TABLE %s (%s, PRIMARY KEY (%s))',
        CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE '' END, chunks,
        (SELECT string_agg(s.definition, ', ' ORDER BY s.place) FROM nv_embed.chunk_columns(relation, target, storage, dim) AS s),
        (SELECT string_agg(quote_ident(k.column_name), ', ' ORDER BY k.place) || ', seq' FROM nv_embed.key_columns(relation) AS k)
    );
    EXECUTE format('COMMENT ON TABLE %s IS %L', chunks, format('Vectors of the pieces of %s, kept by nv_embed.', nv_embed.qualified(relation)));
    IF c.relowner <> current_user::regrole THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', chunks, pg_get_userbyid(c.relowner));
    END IF;
    RETURN chunks::regclass;
END
$$;

COMMENT ON FUNCTION nv_embed.make_chunks(regclass, text, name, text, int) IS 'Makes the table for the pieces'' vectors, or accepts one of just this shape.';

CREATE OR REPLACE FUNCTION nv_embed.check_adopted(chunks regclass, relation regclass, target name, storage text, dim int) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_vectors boolean;
BEGIN
    IF NOT nv_embed.owns(chunks)
        OR EXISTS (SELECT FROM nv_embed.generation AS g WHERE g.chunks = check_adopted.chunks)
        OR EXISTS (SELECT FROM nv_embed.chunk_columns(relation, target, storage, dim) AS c WHERE nv_embed.column_type(chunks, c.column_name) IS DISTINCT FROM c.type)
    THEN
        RAISE EXCEPTION '% is there already, and is no chunk table for % and this model', nv_embed.qualified(chunks), nv_embed.qualified(relation)
            USING ERRCODE = '42P07', HINT = 'drop or rename it, or name another target';
    ELSIF EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = chunks AND p.polname = 'nv_embed_workers') THEN
        RAISE EXCEPTION '% is left of a table that was dropped', nv_embed.qualified(chunks)
            USING ERRCODE = '42P07', HINT = format('DROP TABLE %s', nv_embed.qualified(chunks));
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', nv_embed.qualified(chunks)) INTO has_vectors;
    IF has_vectors THEN
        RAISE WARNING '% has vectors already, which are kept as those of the present texts, pieces and model', nv_embed.qualified(chunks)
            USING HINT = format(
                'if another model, other pieces or older texts made them, DELETE FROM %s and nv_embed.refresh() make them anew', nv_embed.qualified(chunks)
            );
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_adopted(regclass, regclass, name, text, int) IS 'Raises an error where a table of the chunk table''s name is none; warns of what it holds.';

CREATE OR REPLACE FUNCTION nv_embed.guard_chunks(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chunks CONSTANT text := nv_embed.qualified(g.chunks);
    sees_row CONSTANT text := format(
        'EXISTS (SELECT FROM %s AS nv_embed_row WHERE %s)', nv_embed.qualified(e.relation),
        nv_embed.same_key_sql(e.relation, 'nv_embed_row', (SELECT quote_ident(c.relname) FROM pg_class AS c WHERE c.oid = g.chunks))
    );
    keeper CONSTANT name := (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = 'nv_embed.job'::regclass);
    owner CONSTANT name := (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = g.chunks);
    t record;
BEGIN
    IF NOT pg_has_role(keeper, owner, 'USAGE') THEN
        RAISE EXCEPTION 'role %, who installed nv_embed, is no member of %, who owns %',
            quote_ident(keeper), quote_ident(owner), nv_embed.qualified(e.relation)
            USING ERRCODE = '42501', DETAIL = 'Pieces are taken away with the rights of the former.', HINT = format('GRANT %I TO %I', owner, keeper);
    END IF;
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', chunks);
    EXECUTE format('GRANT SELECT, INSERT, DELETE ON %s TO PUBLIC', chunks);
    EXECUTE format('CREATE POLICY nv_embed_readable ON %s FOR SELECT USING ((SELECT nv_embed.may_read(%L)) AND %s)', chunks, g.id, sees_row);
    EXECUTE format('CREATE POLICY nv_embed_written ON %s FOR INSERT WITH CHECK ((SELECT nv_embed.may_write(%L)) AND %s)', chunks, g.id, sees_row);
    EXECUTE format('CREATE POLICY nv_embed_workers ON %s USING ((SELECT nv_embed.may_keep(%L)))', chunks, g.id);
    FOR t IN SELECT * FROM nv_embed.chunk_triggers(g.id) LOOP
        EXECUTE format('CREATE TRIGGER %I ' || t.definition, t.trigger_name, chunks);
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.guard_chunks(nv_embed.embedding, nv_embed.generation) IS 'Gives a chunk table its policies, privileges and triggers.';

CREATE OR REPLACE FUNCTION nv_embed.release_chunks(g nv_embed.generation) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chunks CONSTANT text := nv_embed.qualified(g.chunks);
    named name;
BEGIN
    FOR named IN SELECT t.trigger_name FROM nv_embed.chunk_triggers(g.id) AS t LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', named, chunks);
    END LOOP;
    FOREACH named IN ARRAY ARRAY['nv_embed_readable', 'nv_embed_written', 'nv_embed_workers'] LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON %s', named, chunks);
    END LOOP;
    EXECUTE format('REVOKE SELECT, INSERT, DELETE ON %s FROM PUBLIC', chunks);
END
$$;

COMMENT ON FUNCTION nv_embed.release_chunks(nv_embed.generation) IS 'Leaves a chunk table to its owner alone.';

-- Whom the policies let through. They ask by a generation's number: a policy that named the source columns would keep their types from being altered.

CREATE OR REPLACE FUNCTION nv_embed.may_read(generation bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT coalesce(bool_and(has_column_privilege(e.relation, p.column_name, 'SELECT')), false)
        FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding CROSS JOIN LATERAL nv_embed.parse_template(g.source) AS p
        WHERE g.id = may_read.generation AND p.column_name IS NOT NULL
    );
END
$$;

COMMENT ON FUNCTION nv_embed.may_read(bigint) IS 'Whether the current role may read what is embedded in a generation.';

CREATE OR REPLACE FUNCTION nv_embed.may_write(generation bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
        WHERE g.id = may_write.generation AND has_any_column_privilege(e.relation, 'INSERT, UPDATE')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.may_write(bigint) IS 'Whether the current role may write rows, and so in mode sync their pieces.';

CREATE OR REPLACE FUNCTION nv_embed.may_keep(generation bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN nv_embed.is_worker() AND nv_embed.may_read(generation);
END
$$;

COMMENT ON FUNCTION nv_embed.may_keep(bigint) IS 'Whether the current role is a worker that may read what is embedded, and so write and take away pieces.';

-- The tally hears of vectors from the chunk table itself, whoever writes there.
CREATE OR REPLACE FUNCTION nv_embed.chunk_triggers(id bigint) RETURNS TABLE (trigger_name name, definition text)
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT format('nv_embed_%s_count_%s', id, lower(t.event)), format('AFTER %s FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.count_chunks(%L)', t.event || t.rest, id)
    FROM (
        VALUES ('INSERT', ' ON %s REFERENCING NEW TABLE AS new_rows'), ('DELETE', ' ON %s REFERENCING OLD TABLE AS old_rows'), ('TRUNCATE', ' ON %s')
    ) AS t (event, rest);
END;

COMMENT ON FUNCTION nv_embed.chunk_triggers(bigint) IS 'The triggers of a generation''s chunk table; in their definitions %s is the table.';

-- The first piece of a row stands for the row. Its number is compared as text: a column that its owner gave another type must not call anything here.
CREATE OR REPLACE FUNCTION nv_embed.count_chunks() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    generation CONSTANT bigint := TG_ARGV[0];
    vectors bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM nv_embed.generation AS g WHERE g.id = generation AND g.chunks = TG_RELID) THEN
        PERFORM nv_embed.refuse_trigger(TG_RELID, TG_NAME);
    END IF;
    PERFORM nv_embed.check_trigger(TG_RELID, TG_NAME, TG_OP);
    CASE TG_OP
        WHEN 'INSERT' THEN
            SELECT count(*) INTO vectors FROM new_rows AS n WHERE concat(n.seq) = '0';
        WHEN 'DELETE' THEN
            SELECT -count(*) INTO vectors FROM old_rows AS o WHERE concat(o.seq) = '0';
        ELSE
            SELECT -sum(t.vectors) INTO vectors FROM nv_embed.tally AS t WHERE t.generation = TG_ARGV[0]::bigint;
    END CASE;
    PERFORM nv_embed.tell(generation, 0, 0, coalesce(vectors, 0), 0, 0);
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.count_chunks() IS 'Statement trigger of a chunk table: tells the tally how many rows got vectors, or lost them.';

-- Keeping in step, with the rights of the triggers' owner.

-- Planning a statement may call what indexes, statistics and CHECK constraints are made of, where it has no argument that varies.
CREATE OR REPLACE FUNCTION nv_embed.has_expressions(chunks regclass) RETURNS boolean
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM pg_constraint AS c WHERE c.conrelid = chunks AND c.contype = 'c')
        OR EXISTS (SELECT FROM pg_statistic_ext AS s WHERE s.stxrelid = chunks AND s.stxexprs IS NOT NULL)
        OR EXISTS (
            SELECT FROM pg_index AS i
            JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
            LEFT JOIN pg_proc AS p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
            LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
            JOIN pg_roles AS r ON r.oid = coalesce(p.proowner, o.oprowner)
            WHERE i.indrelid = chunks AND NOT r.rolsuper
                AND NOT EXISTS (SELECT FROM pg_depend AS m WHERE m.classid = d.refclassid AND m.objid = d.refobjid AND m.deptype = 'e')
                AND r.oid <> (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'nv_embed.job'::regclass)
        );
END
$$;

COMMENT ON FUNCTION nv_embed.has_expressions(regclass) IS 'Whether planning a statement on a table may call a function of an ordinary role''s.';

-- LOCK keeps triggers, rules and indexes from being made between the look and the deed.
CREATE OR REPLACE FUNCTION nv_embed.check_chunks(e nv_embed.embedding, g nv_embed.generation) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chunks CONSTANT regclass := g.chunks;
BEGIN
    EXECUTE format('LOCK TABLE %s IN ROW EXCLUSIVE MODE', nv_embed.qualified(chunks));
    IF EXISTS (
            SELECT FROM pg_class AS c JOIN pg_class AS r ON r.oid = e.relation
            WHERE c.oid = chunks AND (c.relowner <> r.relowner OR c.relkind <> 'r' OR c.relhasrules OR c.relhassubclass OR c.relispartition)
        ) OR EXISTS (
            SELECT FROM pg_trigger AS t WHERE t.tgrelid = chunks AND NOT t.tgisinternal AND t.tgfoid <> 'nv_embed.count_chunks()'::regprocedure
        ) OR EXISTS (
            SELECT FROM nv_embed.key_columns(e.relation) AS k
            LEFT JOIN pg_attribute AS a ON a.attrelid = chunks AND a.attname = k.column_name
            JOIN pg_attribute AS s ON s.attrelid = e.relation AND s.attname = k.column_name
            WHERE a.atttypid IS DISTINCT FROM s.atttypid
        ) OR nv_embed.has_expressions(chunks) OR row_security_active(chunks)
    THEN
        RAISE EXCEPTION 'chunk table % has been altered', nv_embed.qualified(chunks)
            USING ERRCODE = '55000',
                  DETAIL = 'It belongs to the owner of the table, and may have no triggers, rules, children, CHECK constraints, nor indexes or statistics on'
                      ' functions of an ordinary role;'
                      ' its key''s columns have the types of those of the table, and whoever installed nv_embed is a member of its owner.',
                  HINT = 'take back what was altered, or call nv_embed.drop_auto_embed() and declare anew';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_chunks(nv_embed.embedding, nv_embed.generation)
    IS 'Raises an error where reading a chunk table, or deleting from it, would run something that a user has made.';

-- $1 is the mode. Pieces of a text that is queued again are kept until the worker has the new ones; in the other modes they go with the text. A row that
-- is inserted has no pieces but what a transaction with an old snapshot could not see when it deleted the row before.
CREATE OR REPLACE FUNCTION nv_embed.unchunk_sql(e nv_embed.embedding, g nv_embed.generation, event text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format('DELETE FROM %s AS nv_embed_chunk USING ', nv_embed.qualified(g.chunks)) || CASE event
        WHEN 'insert' THEN format('new_rows AS n WHERE %s', nv_embed.same_key_sql(e.relation, 'nv_embed_chunk', 'n'))
        WHEN 'delete' THEN format('old_rows AS o WHERE %s', nv_embed.same_key_sql(e.relation, 'nv_embed_chunk', 'o'))
        WHEN 'update' THEN format(
            '%s WHERE %s AND (%s <> %s OR NOT %s OR $1 <> ''async'' AND %s <> %s)',
            nv_embed.pairs_sql(), nv_embed.same_key_sql(e.relation, 'nv_embed_chunk', 'o'), nv_embed.key_sql(e.relation, 'n'),
            nv_embed.key_sql(e.relation, 'o'), nv_embed.has_content(e.source, 'n'), nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o')
        )
    END;
END
$$;

COMMENT ON FUNCTION nv_embed.unchunk_sql(nv_embed.embedding, nv_embed.generation, text) IS 'A statement: take away the pieces that an event''s rows have no more.';

-- Writing, with the rights of whoever embeds.

-- $1 keys, $2 digests, $3 the places of those that are held.
CREATE OR REPLACE FUNCTION nv_embed.clear_chunks_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
BEGIN
    PERFORM nv_embed.check_sees_all(e.relation);
    PERFORM nv_embed.check_may_fill(e, g);
    RETURN format(
        $sql$
            WITH found AS MATERIALIZED (
                SELECT pg_catalog.unnest($1) AS key, pg_catalog.unnest($2) AS digest, pg_catalog.generate_series(1, pg_catalog.cardinality($1)) AS place
                LIMIT pg_catalog.cardinality($1)
            ),
            present AS MATERIALIZED (
                SELECT f.place, %1$s OPERATOR(pg_catalog.=) f.digest AS is_same FROM found AS f JOIN %2$s AS t ON %3$s
            ),
            done AS MATERIALIZED (
                SELECT f.key, f.place, p.place IS NULL AS is_gone
                FROM found AS f LEFT JOIN present AS p ON p.place OPERATOR(pg_catalog.=) f.place
                WHERE f.place OPERATOR(pg_catalog.=) ANY ($3) AND (p.place IS NULL OR p.is_same)
            ),
            cleared AS (DELETE FROM %4$s AS t USING done AS f WHERE %3$s)
            SELECT ARRAY(SELECT place FROM done WHERE NOT is_gone), ARRAY(SELECT place FROM done WHERE is_gone)
        $sql$,
        nv_embed.digest_sql(e.source, 't'), nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f'), nv_embed.qualified(g.chunks)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.clear_chunks_sql(bigint)
    IS 'A statement: take away the pieces of rows that are gone, or read as they were embedded; it returns the places of the latter, and of the former.';

-- $1 keys; $2 for each piece the place of its row; $3 and $4 its characters; $5 its vector; $6 the places of the rows that are written.
CREATE OR REPLACE FUNCTION nv_embed.write_chunks_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
BEGIN
    RETURN format(
        $sql$
            INSERT INTO %1$s (%2$s, seq, start_char, end_char, %3$I)
            SELECT %4$s, p.seq, p.start_char, p.end_char, p.vector::%5$s
            FROM (
                SELECT u.place, (pg_catalog.row_number() OVER (PARTITION BY u.place ORDER BY u.ordinal) OPERATOR(pg_catalog.-) 1)::pg_catalog.int4 AS seq,
                    u.start_char, u.end_char, u.vector
                FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) WITH ORDINALITY
                    AS u (place, start_char, end_char, vector, ordinal)
                WHERE u.place OPERATOR(pg_catalog.=) ANY ($6)
            ) AS p
            CROSS JOIN LATERAL (SELECT ($1)[p.place] AS key) AS f
            JOIN %6$s AS t ON %7$s
        $sql$,
        nv_embed.qualified(g.chunks),
        (SELECT string_agg(quote_ident(k.column_name), ', ' ORDER BY k.place) FROM nv_embed.key_columns(e.relation) AS k),
        g.target,
        (SELECT string_agg(format('t.%I', k.column_name), ', ' ORDER BY k.place) FROM nv_embed.key_columns(e.relation) AS k),
        nv_embed.type_sql(g.storage, g.dim), nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.write_chunks_sql(bigint) IS 'A statement: write the pieces of rows.';

-- The user's row-level security and types run in these: no SET search_path, and every name with its schema.

CREATE OR REPLACE FUNCTION nv_embed.write_chunks(
    generation bigint, keys text[], ids bigint[], digests bytea[], places int[], starts int[], ends int[], vectors anyarray, OUT written int[], OUT gone int[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    held pg_catalog.int4[];
BEGIN
    -- The table first: whoever has that for oneself, as a TRUNCATE, takes the jobs away.
    PERFORM nv_embed.hold_generation(generation);
    held := nv_embed.held_places(generation, keys, ids);
    EXECUTE nv_embed.clear_chunks_sql(generation) INTO written, gone USING keys, digests, held;
    EXECUTE nv_embed.write_chunks_sql(generation) USING keys, places, starts, ends, vectors, written;
END
$$;

COMMENT ON FUNCTION nv_embed.write_chunks(bigint, text[], bigint[], bytea[], int[], int[], int[], anyarray)
    IS 'Locks jobs and writes the pieces of rows that still read as they were embedded; the places of those rows, and of those that are gone.';

CREATE OR REPLACE FUNCTION nv_embed.write_back_chunks(
    generation bigint, keys text[], ids bigint[], digests bytea[], places int[], starts int[], ends int[], vectors anyarray,
    OUT settled int, OUT unsettled int[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    outcome CONSTANT record := nv_embed.write_chunks(generation, keys, ids, digests, places, starts, ends, vectors);
    done CONSTANT pg_catalog.int4[] := outcome.written OPERATOR(pg_catalog.||) outcome.gone;
BEGIN
    SELECT s.settled, s.unsettled INTO settled, unsettled FROM nv_embed.settle_or_release(generation, keys, ids, done) AS s;
END
$$;

COMMENT ON FUNCTION nv_embed.write_back_chunks(bigint, text[], bigint[], bytea[], int[], int[], int[], anyarray)
    IS 'write_back for pieces: each has the place of its row among the keys, its first character and the one after its last, and its vector.';

-- In the server itself, which is what refresh() does in mode sync: a worker's way, in one transaction.
CREATE OR REPLACE FUNCTION nv_embed.embed_queued(generation bigint) RETURNS bigint
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(generation);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
    embedded bigint := 0;
    page record;
    pieces record;
BEGIN
    IF NOT nv_embed.is_pending(generation) THEN
        RETURN 0;
    END IF;
    -- The table first, as in write_chunks.
    PERFORM nv_embed.hold_generation(generation);
    LOOP
        SELECT * INTO page FROM nv_embed.claimed_texts(generation, 100);
        EXIT WHEN page.keys IS NULL;
        IF g.chunks IS NULL THEN
            embedded := embedded OPERATOR(pg_catalog.+) (nv_embed.write_back(
                generation, page.keys, page.ids, page.digests, nv_embed.embed_passages(page.texts, g.dim, g.model, g.revision, e.truncate)
            )).settled;
            CONTINUE;
        END IF;
        pieces := nv_embed.embed_chunks(page.texts, e.chunk_tokens, e.chunk_overlap, g.dim, g.model, g.revision);
        embedded := embedded OPERATOR(pg_catalog.+) (nv_embed.write_back_chunks(
            generation, page.keys, page.ids, page.digests, pieces.places, pieces.starts, pieces.ends, pieces.vectors
        )).settled;
    END LOOP;
    RETURN embedded;
END
$$;

COMMENT ON FUNCTION nv_embed.embed_queued(bigint) IS 'Embeds what is queued of a generation; returns how many rows.';

CREATE OR REPLACE FUNCTION nv_embed.claimed_texts(generation bigint, most int, OUT keys text[], OUT ids bigint[], OUT texts text[], OUT digests bytea[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT array_agg(c.key), array_agg(c.id) INTO keys, ids FROM nv_embed.claim(ARRAY[claimed_texts.generation], most, '1 hour') AS c;
    SELECT array_agg(r.text ORDER BY u.place), array_agg(r.digest ORDER BY u.place) INTO texts, digests
    FROM unnest(keys) WITH ORDINALITY AS u (key, place) LEFT JOIN nv_embed.read(claimed_texts.generation, keys, 2147483647) AS r ON r.place = u.place;
END
$$;

COMMENT ON FUNCTION nv_embed.claimed_texts(bigint, int) IS 'Claims jobs and reads their texts, in one order; NULL when there are none.';
