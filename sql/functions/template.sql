-- template: '{title}: {body}' to SQL.
--
-- A template is taken apart once, at the declaration, and again whenever a statement is built; it is never executed as such. Column names reach SQL by
-- format('%I') and the text between them by format('%L'), so a template cannot smuggle anything in. The texts are compared as they are, whatever collations
-- the columns have.

CREATE OR REPLACE FUNCTION nv_embed.parse_template(source text)
RETURNS TABLE (place int, column_name name, literal text)
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part text;
    text_so_far text := '';
BEGIN
    place := 0;
    -- The alternatives, in order: a doubled brace, a column, a stray brace, a run of anything else.
    FOR part IN SELECT m[1] FROM regexp_matches(source, '(\{\{|\}\}|\{[^{}]+\}|[{}]|[^{}]+)', 'g') AS m LOOP
        CASE
            WHEN part IN ('{{', '}}') THEN
                text_so_far := text_so_far || left(part, 1);
            WHEN part IN ('{', '}') THEN
                RAISE EXCEPTION 'the source template % has a single brace', quote_literal(source)
                    USING ERRCODE = '22023', HINT = 'write columns as {name}, and a brace itself doubled';
            WHEN left(part, 1) = '{' THEN
                place := place + 1;
                literal := text_so_far;
                column_name := substr(part, 2, length(part) - 2);
                RETURN NEXT;
                text_so_far := '';
            ELSE
                text_so_far := text_so_far || part;
        END CASE;
    END LOOP;
    IF place = 0 THEN
        RAISE EXCEPTION 'the source template % names no column', quote_literal(source)
            USING ERRCODE = '22023', HINT = 'write columns as {name}, for example {title}: {body}';
    END IF;
    IF text_so_far <> '' THEN
        place := place + 1;
        literal := text_so_far;
        column_name := NULL;
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.parse_template(text) IS 'The parts of a source template in order: the text before a column, and the column.';

CREATE OR REPLACE FUNCTION nv_embed.rendered(source text, alias name) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format(
            '(pg_catalog.concat(%s) COLLATE pg_catalog."default")',
            string_agg(
                concat_ws(', ', quote_literal(nullif(p.literal, '')), quote_ident(alias) || '.' || quote_ident(p.column_name)),
                ', ' ORDER BY p.place
            )
        )
        FROM nv_embed.parse_template(source) AS p
    );
END
$$;

COMMENT ON FUNCTION nv_embed.rendered(text, name) IS 'An SQL expression: the text of a row by this template; a NULL column reads as the empty text.';

CREATE OR REPLACE FUNCTION nv_embed.has_content(source text, alias name) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format('(pg_catalog.concat(%s) COLLATE pg_catalog."default") OPERATOR(pg_catalog.~) %L', string_agg(format('%I.%I', alias, p.column_name), ', ' ORDER BY p.place), '[^[:space:]]')
        FROM nv_embed.parse_template(source) AS p
        WHERE p.column_name IS NOT NULL
    );
END
$$;

COMMENT ON FUNCTION nv_embed.has_content(text, name)
    IS 'An SQL expression: whether any source column of a row has more than white space. A row without content has no vector.';
