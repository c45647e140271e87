-- The rows that are nearest to a question, best first. Postgres's format() writes the filter: its template has none of the caller's text.
SELECT {columns}, f.score
FROM {function}(NULL::{table}, {question}, {options}) AS f
