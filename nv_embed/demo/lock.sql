SELECT pg_try_advisory_lock(hashtext('nv-embed demo'))
