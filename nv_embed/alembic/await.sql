-- Waits until workers have filled the next generation, as far as that there are indexes to build or that all is ready.
DO $nv_embed$
DECLARE
    open record;
    told timestamptz := '-infinity';
BEGIN
    LOOP
        SELECT r.id, r.embedded, r.rows, nv_embed.advance_reembedding(r.id) AS state INTO open
        FROM nv_embed.reembedding_status AS r
        WHERE r.relation = @relation@::regclass AND r.target = @target@ AND r.ended_at IS NULL AND r.state NOT IN ('live', 'rolled_back');
        COMMIT;
        EXIT WHEN open.state IS NULL OR open.state NOT IN ('backfilling', 'verifying');
        IF told < clock_timestamp() - interval '30 seconds' THEN
            RAISE NOTICE 're-embedding % of %: % of % rows; a worker must run (nv-embed worker --database-url …)', open.id, @relation@, open.embedded, open.rows;
            told := clock_timestamp();
        END IF;
        PERFORM pg_sleep(0.25);
    END LOOP;
END
$nv_embed$
