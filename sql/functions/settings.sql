-- settings: where the sidecar is and what it is shown, said by whoever may.
--
-- What is shown to a sidecar is kept for that sidecar alone: with another endpoint, or another authority to know it by, it must be said again. Otherwise
-- a member of nv_embed_admin, who may not read the token, could have it sent to a sidecar of his own.

CREATE OR REPLACE FUNCTION nv_embed.configure(
    endpoint text, timeout_s real DEFAULT NULL, token text DEFAULT NULL, ca text DEFAULT NULL, certificate text DEFAULT NULL, key text DEFAULT NULL,
    token_without_tls boolean DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s nv_embed.settings;
BEGIN
    IF configure.endpoint !~ '^(unix:/[^[:space:]]+|[^[:space:]/]+:[0-9]{1,5})$' IS NOT FALSE THEN
        RAISE EXCEPTION 'endpoint % is not an address', coalesce(quote_literal(configure.endpoint), 'null')
            USING ERRCODE = '22023', HINT = 'give host:port, or unix:/path/to/socket';
    END IF;
    IF NOT (coalesce(configure.timeout_s, 1) > 0 AND coalesce(configure.timeout_s, 1) <= 3600) THEN
        RAISE EXCEPTION 'timeout_s % is out of range', configure.timeout_s
            USING ERRCODE = '22023', HINT = 'give seconds above 0, 3600 at most';
    END IF;
    SELECT * INTO STRICT s FROM nv_embed.settings FOR UPDATE;
    IF s.endpoint IS DISTINCT FROM configure.endpoint
        OR coalesce(configure.ca, s.ca) IS DISTINCT FROM s.ca
        OR coalesce(configure.token_without_tls, s.token_without_tls) <> s.token_without_tls
    THEN
        s.token := NULL;
        s.ca := NULL;
        s.certificate := NULL;
        s.key := NULL;
        s.token_without_tls := false;
    END IF;
    s.endpoint := configure.endpoint;
    s.timeout_s := coalesce(configure.timeout_s, s.timeout_s);
    s.token := nullif(coalesce(configure.token, s.token), '');
    s.ca := nullif(coalesce(configure.ca, s.ca), '');
    s.certificate := nullif(coalesce(configure.certificate, s.certificate), '');
    s.key := nullif(coalesce(configure.key, s.key), '');
    s.token_without_tls := coalesce(configure.token_without_tls, s.token_without_tls);
    PERFORM nv_embed.check_credentials(s);
    UPDATE nv_embed.settings AS t
    SET endpoint = s.endpoint, timeout_s = s.timeout_s, token = s.token, ca = s.ca, certificate = s.certificate, key = s.key,
        token_without_tls = s.token_without_tls;
END
$$;

COMMENT ON FUNCTION nv_embed.configure(text, real, text, text, text, text, boolean)
    IS 'Says where the sidecar is, how many seconds a page of texts may take, and by what both know each other; for a superuser and members of nv_embed_admin.';

-- Nothing of what is checked is quoted: it would be in the server's log.

CREATE OR REPLACE FUNCTION nv_embed.check_credentials(s nv_embed.settings) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF s.token !~ '^[!-~]+$' OR length(s.token) > 4096 THEN
        RAISE EXCEPTION 'the token has characters that no token has'
            USING ERRCODE = '22023', HINT = 'give it as nv-embed token add printed it, without a line end';
    END IF;
    -- The text itself and no path: whoever may configure need not be one who may have the server read its files.
    IF s.ca <> 'system' AND s.ca !~ '-----BEGIN CERTIFICATE-----' THEN
        RAISE EXCEPTION 'the ca has no PEM certificate'
            USING ERRCODE = '22023', HINT = 'give the text of a PEM file, as by pg_read_file(), or system for the usual authorities';
    END IF;
    IF s.certificate !~ '-----BEGIN CERTIFICATE-----' OR s.key !~ '-----BEGIN [A-Z ]*PRIVATE KEY-----' THEN
        RAISE EXCEPTION 'the certificate or the key is not PEM'
            USING ERRCODE = '22023', HINT = 'give the text of their files, as by pg_read_file()';
    END IF;
    IF (s.certificate IS NULL) <> (s.key IS NULL) OR s.certificate IS NOT NULL AND s.ca IS NULL THEN
        RAISE EXCEPTION 'a certificate needs its key, and a ca'
            USING ERRCODE = '22023', HINT = 'give all three, or an empty text for one that is not wanted any more';
    END IF;
    IF s.token IS NOT NULL AND s.ca IS NULL AND NOT s.token_without_tls
        AND s.endpoint !~ '^(unix:.*|(localhost|127(\.[0-9]{1,3}){3}|\[::1\]):[0-9]+)$'
    THEN
        RAISE EXCEPTION 'the token would go over the network unencrypted'
            USING ERRCODE = '22023', HINT = 'give as ca who has signed the sidecar''s certificate; token_without_tls says that the network is private';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_credentials(nv_embed.settings) IS 'Raises an error where what is shown to the sidecar cannot be used, without any of it.';
