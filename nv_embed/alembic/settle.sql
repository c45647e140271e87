-- What there is, towards what is wanted: goes back, or begins, or leaves things as they are. Each step is a transaction of its own, since a search that began
-- before a rolling back reads its column until that is committed.
DO $nv_embed$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(@relation@, @target@);
    live CONSTANT nv_embed.generation := nv_embed.live_generation(@relation@, @target@);
    wanted record;
    r record;
BEGIN
    SELECT i.model, i.revision, i.dim, coalesce(@storage@, live.storage) AS storage, coalesce(@source@, live.source) AS source,
        p.tokens AS chunk_tokens, CASE WHEN p.tokens IS NULL THEN 0 ELSE coalesce(@chunk_overlap@, live.chunk_overlap) END AS chunk_overlap
    INTO STRICT wanted
    FROM nv_embed.identify(NULL, coalesce(@model@, live.model)) AS native
    CROSS JOIN LATERAL nv_embed.identify(
        coalesce(@dim@, CASE WHEN (native.model, native.revision) = (live.model, live.revision) THEN live.dim ELSE native.dim END), native.model
    ) AS i
    CROSS JOIN (SELECT nullif(coalesce(@chunk_tokens@, live.chunk_tokens), 0) AS tokens) AS p;
    SELECT s.id, s.state,
        ROW(o.model, o.revision, o.dim, o.storage, o.source, o.chunk_tokens, o.chunk_overlap) IS NOT DISTINCT FROM wanted AS comes_from,
        ROW(n.model, n.revision, n.dim, n.storage, n.source, n.chunk_tokens, n.chunk_overlap) IS NOT DISTINCT FROM wanted AS goes_to
    INTO r
    FROM nv_embed.reembedding AS s
    JOIN nv_embed.generation AS o ON o.id = s.from_generation
    JOIN nv_embed.generation AS n ON n.id = s.to_generation
    WHERE s.embedding = e.id AND s.ended_at IS NULL;
    IF r.state = 'live' AND r.comes_from THEN
        PERFORM nv_embed.roll_back(r.id);
        COMMIT;
        r.state := 'rolled_back';
    END IF;
    IF r.state = 'rolled_back' OR r.state = 'live' AND NOT r.goes_to THEN
        PERFORM nv_embed.finish(r.id);
        COMMIT;
    ELSIF r.state <> 'live' AND r.comes_from THEN
        PERFORM nv_embed.cancel(r.id);
        COMMIT;
    ELSIF r.state <> 'live' AND r.goes_to THEN
        PERFORM nv_embed.alter_reembedding(r.id, @rows_per_s@, @min_overlap@, @min_recall@);
        RETURN;
    ELSIF r.state <> 'live' THEN
        RAISE EXCEPTION 're-embedding % of % goes elsewhere', r.id, nv_embed.qualified(e.relation)
            USING ERRCODE = '55006', HINT = format('SELECT nv_embed.cancel(%s) ends it', r.id);
    END IF;
    SELECT * INTO STRICT r FROM nv_embed.live_generation(@relation@, @target@);
    IF ROW(r.model, r.revision, r.dim, r.storage, r.source, r.chunk_tokens, r.chunk_overlap) IS DISTINCT FROM wanted THEN
        PERFORM nv_embed.reembed(
            @relation@, @target@, wanted.model, wanted.dim, wanted.storage, @rows_per_s@, @min_overlap@, @min_recall@, wanted.source,
            coalesce(wanted.chunk_tokens, 0), wanted.chunk_overlap
        );
    END IF;
END
$nv_embed$
