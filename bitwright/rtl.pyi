from rtl import *
