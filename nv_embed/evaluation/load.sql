COPY {table} (id, title, body, language) FROM STDIN
