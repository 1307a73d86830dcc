module underpass.test/http

go 1.24
