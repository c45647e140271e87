-- key: the columns of a table's primary key, with their types and their own equality.
--
-- Every statement on an auto-embedded table asks for them. PL/pgSQL keeps the plan of this query for the session; an SQL function would make it each time,
-- which takes milliseconds.

CREATE OR REPLACE FUNCTION nv_embed.key_columns(relation regclass)
RETURNS TABLE (place bigint, column_name name, type text, compared text, equals text)
LANGUAGE plpgsql STABLE STRICT ROWS 2
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The operator is the key index's own, written with its schema: '=' for citext, say, lives where the extension was put. There somebody may have put
    -- another one for a domain over citext, which would be the nearer match. So both sides are to be cast to the very type that the operator takes, which
    -- costs nothing and keeps the index. Where that is a pseudo-type, as for enums, the operator is pg_catalog's, where nobody puts others.
    RETURN QUERY
    SELECT k.place, a.attname, format('%I.%I', y.nspname, t.typname),
        CASE p.typtype WHEN 'p' THEN format('%I.%I', y.nspname, t.typname) ELSE format('%I.%I', q.nspname, p.typname) END,
        format('OPERATOR(%I.%s)', n.nspname, o.oprname)
    FROM pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, place)
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    JOIN pg_type AS t ON t.oid = a.atttypid
    JOIN pg_namespace AS y ON y.oid = t.typnamespace
    JOIN pg_opclass AS c ON c.oid = k.opclass
    JOIN pg_type AS p ON p.oid = c.opcintype
    JOIN pg_namespace AS q ON q.oid = p.typnamespace
    JOIN pg_amop AS m
        ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3
    JOIN pg_operator AS o ON o.oid = m.amopopr
    JOIN pg_namespace AS n ON n.oid = o.oprnamespace
    WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts;
END
$$;

COMMENT ON FUNCTION nv_embed.key_columns(regclass) IS 'Columns of the primary key in order, each with its type, and the type as which it is compared by which operator.';

-- Names alone, from two catalogs: a statement that writes asks for this several times, and key_columns() reads more.
CREATE OR REPLACE FUNCTION nv_embed.key_sql(relation regclass, alias name) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format('(ARRAY[%s]::pg_catalog.text COLLATE pg_catalog."C")', string_agg(format('pg_catalog.concat(%I.%I)', alias, a.attname), ', ' ORDER BY k.place))
        FROM pg_index AS i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = relation AND i.indisprimary AND k.place <= i.indnkeyatts
    );
END
$$;

COMMENT ON FUNCTION nv_embed.key_sql(regclass, name) IS 'An SQL expression: the primary key of a row, each column as text, in an array that is written as text.';

CREATE OR REPLACE FUNCTION nv_embed.same_key_sql(relation regclass, one text, other text) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT string_agg(format('%s.%I::%s %s %s.%2$I::%3$s', one, k.column_name, k.compared, k.equals, other), ' AND ' ORDER BY k.place)
        FROM nv_embed.key_columns(relation) AS k
    );
END
$$;

COMMENT ON FUNCTION nv_embed.same_key_sql(regclass, text, text)
    IS 'An SQL condition: a row and a piece, or two rows, have the same primary key. They are SQL expressions, such as quoted aliases.';

CREATE OR REPLACE FUNCTION nv_embed.matched_sql(relation regclass, alias name) RETURNS text
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT string_agg(
        format('t.%I::%s %s (%I.key::pg_catalog.text[])[%s]::%s::%2$s', k.column_name, k.compared, k.equals, alias, k.place, k.type), ' AND ' ORDER BY k.place
    )
    FROM nv_embed.key_columns(relation) AS k
);

COMMENT ON FUNCTION nv_embed.matched_sql(regclass, name) IS 'An SQL condition: the row t of a table has the key of another relation.';

-- Written with the operator of the key's own index, as its order is: another one, or another type's, would leave rows out. Keys are compared as rows, which
-- the index finds at once. Where the columns' operators lie in different schemas there is no such comparison; then the rows after a key are those of some
-- ranges that do not overlap, each of which the index finds.
CREATE OR REPLACE FUNCTION nv_embed.ranges_after(relation regclass) RETURNS SETOF text
LANGUAGE plpgsql STABLE STRICT ROWS 1
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH key AS (
        SELECT k.place, format('t.%I', k.column_name) AS column_name, k.equals, format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS follows,
            format('($2::pg_catalog.text[])[%s]::%s', k.place, k.type) AS value
        FROM pg_index AS i
        CROSS JOIN LATERAL unnest(i.indclass::oid[]) WITH ORDINALITY AS u (opclass, place)
        JOIN nv_embed.key_columns(relation) AS k ON k.place = u.place
        JOIN pg_opclass AS c ON c.oid = u.opclass
        JOIN pg_amop AS m
            ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype AND m.amopstrategy = 5
        JOIN pg_operator AS o ON o.oid = m.amopopr
        JOIN pg_namespace AS n ON n.oid = o.oprnamespace
        WHERE i.indrelid = relation AND i.indisprimary
    )
    SELECT format('(%s) %s (%s)', string_agg(k.column_name, ', ' ORDER BY k.place), min(k.follows), string_agg(k.value, ', ' ORDER BY k.place))
    FROM key AS k
    HAVING min(k.follows) = max(k.follows)
    UNION ALL
    SELECT concat(
        (SELECT string_agg(format('%s %s %s AND ', b.column_name, b.equals, b.value), '' ORDER BY b.place) FROM key AS b WHERE b.place < k.place),
        format('%s %s %s', k.column_name, k.follows, k.value)
    )
    FROM key AS k
    WHERE (SELECT min(o.follows) <> max(o.follows) FROM key AS o);
END
$$;

COMMENT ON FUNCTION nv_embed.ranges_after(regclass) IS 'SQL conditions: the row t comes after the key $2 in the order of the primary key, as one of them says.';
