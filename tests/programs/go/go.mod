module underpass.test/program

go 1.19
