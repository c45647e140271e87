-- To before a cut-over: the vectors of before answer, and the re-embedding is under way again.
DO $nv_embed$
DECLARE
    r record;
BEGIN
    SELECT s.id, s.state, s.to_model, s.to_dim, s.to_storage, s.to_source, s.to_chunk_tokens, s.to_chunk_overlap, s.rows_per_s, s.min_overlap, s.min_recall INTO r
    FROM nv_embed.reembedding_status AS s
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
        PERFORM nv_embed.reembed(
            @relation@, @target@, r.to_model, r.to_dim, r.to_storage, r.rows_per_s, r.min_overlap, r.min_recall, r.to_source, coalesce(r.to_chunk_tokens, 0),
            r.to_chunk_overlap
        );
    END IF;
END
$nv_embed$
