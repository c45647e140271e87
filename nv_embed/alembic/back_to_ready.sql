-- To before a cut-over: the vectors of before answer, and the re-embedding is under way again.
DO $nv_embed$
DECLARE
    r record;
BEGIN
    SELECT s.id, s.state, s.to_model, s.to_dim, s.to_storage, o.rows_per_s, o.min_overlap, o.min_recall INTO r
    FROM nv_embed.reembedding_status AS s JOIN nv_embed.reembedding AS o ON o.id = s.id
    WHERE s.relation = @relation@::regclass AND s.target = @target@ AND s.ended_at IS NULL;
    IF r.state IS NULL THEN
        RAISE NOTICE 'the re-embedding of % was finished: what takes back its beginning makes the vectors of before anew', @relation@;
    ELSIF r.state = 'live' THEN
        PERFORM nv_embed.roll_back(r.id);
        COMMIT;
    END IF;
    IF r.state IN ('live', 'rolled_back') THEN
        PERFORM nv_embed.finish(r.id);
        COMMIT;
        PERFORM nv_embed.reembed(@relation@, @target@, r.to_model, r.to_dim, r.to_storage, r.rows_per_s, r.min_overlap, r.min_recall);
    END IF;
END
$nv_embed$
