-- settings: where the sidecar is, said by whoever may.

CREATE OR REPLACE FUNCTION nv_embed.configure(endpoint text, timeout_s real DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF configure.endpoint !~ '^(unix:/[^[:space:]]+|[^[:space:]/]+:[0-9]{1,5})$' IS NOT FALSE THEN
        RAISE EXCEPTION 'endpoint % is not an address', coalesce(quote_literal(configure.endpoint), 'null')
            USING ERRCODE = '22023', HINT = 'give host:port, or unix:/path/to/socket';
    END IF;
    IF NOT (coalesce(configure.timeout_s, 1) > 0 AND coalesce(configure.timeout_s, 1) <= 3600) THEN
        RAISE EXCEPTION 'timeout_s % is out of range', configure.timeout_s
            USING ERRCODE = '22023', HINT = 'give seconds above 0, 3600 at most';
    END IF;
    UPDATE nv_embed.settings AS s
    SET endpoint = configure.endpoint,
        timeout_s = coalesce(configure.timeout_s, s.timeout_s);
END
$$;

COMMENT ON FUNCTION nv_embed.configure(text, real)
    IS 'Says where the sidecar is and how many seconds a page of texts may take; for a superuser and members of nv_embed_admin.';
