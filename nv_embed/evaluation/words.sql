-- For full text: words once, not at each search.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = {relation}::regclass AND a.attname = 'words' AND NOT a.attisdropped) THEN
        ALTER TABLE {table} ADD COLUMN words tsvector GENERATED ALWAYS AS (to_tsvector(language, title || ' ' || body)) STORED;
        CREATE INDEX ON {table} USING gin (words);
        ANALYZE {table};
    END IF;
END
$$
